use tracing::{info, warn};

use super::Daemon;
use crate::api;
use crate::dataplane::Attached;
use crate::model::{Desired, Interface};
use crate::netlink::Link;

impl Daemon {
    /// Attaches to the interfaces that are newly declared, or in another mode than before: to all of
    /// them, or everything stays as it was. Returns their names.
    pub(super) fn attach_new(&mut self, desired: &Desired) -> Result<Vec<String>, api::Error> {
        let current = self.engine.desired().interfaces.clone();
        let mut attached = Vec::new();
        for (name, interface) in &desired.interfaces {
            if current.get(name) == Some(interface) {
                continue;
            }
            if let Err(reason) = self.attach(name, interface) {
                self.undo(&attached);
                return Err(api::Error::Conflict(vec![reason]));
            }
            attached.push(name.clone());
        }
        Ok(attached)
    }

    /// Takes back what [`Self::attach_new`] did. What an earlier daemon left forwarding goes on.
    pub(super) fn undo(&mut self, names: &[String]) {
        for name in names {
            let Some(Ok(attached)) = self.interfaces.get(name) else {
                continue;
            };
            match attached.before {
                None => self.detach(name),
                Some(_) if attached.taken_over() => {}
                Some(before) => {
                    let mode = before.into();
                    let _ = self.attach(name, &Interface { mode });
                }
            }
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

    /// Attaches to one interface. If that fails, one that was attached still is.
    pub(super) fn attach(&mut self, name: &str, interface: &Interface) -> Result<(), String> {
        let result = self.engine.dataplane_mut().attach(name, interface.mode);
        let result = result.map_err(|error| format!("{:#}", anyhow::Error::from(error)));
        match &result {
            Ok(attached) => {
                info!(interface = name, "{}", note(attached));
                self.engine.add_way_out(attached);
            }
            Err(reason) => warn!(interface = name, reason, "not attached"),
        }
        let outcome = result.as_ref().map(drop).map_err(String::clone);
        let links = self.engine.dataplane().attached().unwrap_or_default();
        let was = self.interfaces.get(name).is_some_and(Result::is_ok);
        let stays = result.is_err() && was && links.iter().any(|link| link == name);
        if !stays {
            self.interfaces.insert(name.to_owned(), result);
        }
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
    let mode = attached.mode.as_str();
    let gap = if attached.taken_over() {
        ", taken over without a gap"
    } else {
        ""
    };
    match &attached.fallback {
        Some(why) => format!("attached in {mode} mode: the driver can't do native XDP ({why})"),
        None => format!("attached in {mode} mode{gap}"),
    }
}
