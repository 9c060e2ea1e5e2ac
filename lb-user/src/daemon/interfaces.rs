use tracing::{info, warn};

use super::Daemon;
use crate::api;
use crate::dataplane::Attached;
use crate::model::{Desired, Interface};
use crate::netlink::Link;

impl Daemon {
    /// Attaches to the interfaces that are newly declared: to all of them or to none. Returns
    /// their names.
    pub(super) fn attach_new(&mut self, desired: &Desired) -> Result<Vec<String>, api::Error> {
        let current = self.engine.desired().interfaces.clone();
        let mut attached = Vec::new();
        for (name, interface) in &desired.interfaces {
            match current.get(name) {
                Some(before) if before == interface => continue,
                // Another mode needs another link: there is a moment without the program.
                Some(_) => self.detach(name),
                None => {}
            }
            if let Err(reason) = self.attach(name, interface) {
                self.undo(&attached);
                if let Some(before) = current.get(name) {
                    let _ = self.attach(name, before);
                }
                return Err(api::Error::Conflict(vec![reason]));
            }
            attached.push(name.clone());
        }
        Ok(attached)
    }

    /// Takes back what [`Self::attach_new`] did.
    pub(super) fn undo(&mut self, attached: &[String]) {
        for name in attached {
            self.detach(name);
        }
    }

    /// Detaches from the interfaces that nobody declares.
    pub(super) fn detach_old(&mut self, desired: &Desired) {
        let links = self.engine.dataplane().attached().unwrap_or_default();
        for name in links {
            if !desired.interfaces.contains_key(&name) {
                self.detach(&name);
                info!(interface = name, "detached");
            }
        }
        self.interfaces
            .retain(|name, _| desired.interfaces.contains_key(name));
    }

    fn attach(&mut self, name: &str, interface: &Interface) -> Result<(), String> {
        let result = self.engine.dataplane_mut().attach(name, interface.mode);
        let result = result.map_err(|error| format!("{:#}", anyhow::Error::from(error)));
        match &result {
            Ok(attached) => info!(interface = name, "{}", note(attached)),
            Err(reason) => warn!(interface = name, reason, "not attached"),
        }
        let outcome = result.as_ref().map(drop).map_err(String::clone);
        self.interfaces.insert(name.to_owned(), result);
        outcome
    }

    fn detach(&mut self, name: &str) {
        if let Err(error) = self.engine.dataplane_mut().detach(name) {
            let error = anyhow::Error::from(error);
            warn!(interface = name, "could not be detached: {error:#}");
        }
        self.interfaces.remove(name);
    }

    /// An interface came, maybe one that went before.
    pub(super) fn link(&mut self, ifindex: u32, link: &Link) {
        let declared = self.engine.desired().interfaces.get(&link.name).cloned();
        let Some(interface) = declared else { return };
        let current = self.interfaces.get(&link.name);
        let there = current.is_some_and(|a| a.as_ref().is_ok_and(|a| a.ifindex == ifindex));
        if !there {
            // What fails stands in the status; the next change of the interface tries again.
            let _ = self.attach(&link.name, &interface);
        }
    }

    /// An interface went, and its link with it.
    pub(super) fn link_gone(&mut self, ifindex: u32, name: &str) {
        let current = self.interfaces.get(name);
        let ours = current.is_some_and(|a| a.as_ref().is_ok_and(|a| a.ifindex == ifindex));
        if ours {
            warn!(
                interface = name,
                "the interface is gone; attaching when it is back"
            );
            let reason = "the interface does not exist at the moment".to_owned();
            self.interfaces.insert(name.to_owned(), Err(reason));
        }
    }
}

/// Says how an interface is attached.
pub(super) fn note(attached: &Attached) -> String {
    let mode = match attached.mode {
        Some(mode) => format!("attached in {} mode", mode.as_str()),
        None => "attached in the mode of an earlier daemon, without a gap".to_owned(),
    };
    match &attached.fallback {
        Some(why) => format!("{mode}: the driver can't do native XDP ({why})"),
        None => mode,
    }
}
