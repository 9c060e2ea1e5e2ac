//! The daemon: one event loop over everything that can happen.

mod commands;
mod explain;
mod guard;
mod interfaces;
mod nat;
mod start;
mod views;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::time::sleep_until;
use tracing::{error, info, warn};

pub use start::{StartError, run};

use crate::api;
use crate::config::{self, Config, Paths};
use crate::dataplane::{Attached, Kernel};
use crate::engine::{Engine, Hop};
use crate::health::{self, Checker};
use crate::model::{BackendId, Desired, Forward, HealthState};
use crate::netlink::{self, Resolver, Unresolved};
use crate::state::{Directory, LoadedLists, Overrides};

/// Events handled before the maps are brought up to date: a burst costs one plan.
const BURST: usize = 1024;

/// Everything that can happen.
enum Event {
    /// A client asks.
    Request(api::Request),
    /// A backend's health changed.
    Health(health::Report),
    /// The network changed.
    Network(netlink::Event),
    /// The operator wants the configuration read again (SIGHUP).
    Reload,
    /// The daemon shall stop (SIGTERM, SIGINT).
    Stop,
    /// A time came.
    Tick,
}

/// Where events come from.
struct Sources {
    requests: mpsc::Receiver<api::Request>,
    health: mpsc::Receiver<health::Report>,
    network: mpsc::Receiver<netlink::Event>,
    hangup: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Sources {
    async fn next(&mut self, deadline: Option<Instant>) -> Event {
        let at = deadline.unwrap_or_else(Instant::now);
        tokio::select! {
            Some(request) = self.requests.recv() => Event::Request(request),
            Some(report) = self.health.recv() => Event::Health(report),
            Some(event) = self.network.recv() => Event::Network(event),
            _ = self.hangup.recv() => Event::Reload,
            _ = self.terminate.recv() => Event::Stop,
            _ = self.interrupt.recv() => Event::Stop,
            () = sleep_until(at.into()), if deadline.is_some() => Event::Tick,
        }
    }

    /// Returns what has happened already.
    fn waiting(&mut self) -> Option<Event> {
        let health = self.health.try_recv().ok().map(Event::Health);
        health.or_else(|| self.network.try_recv().ok().map(Event::Network))
    }
}

/// The daemon's state.
struct Daemon {
    config_path: PathBuf,
    paths: Paths,
    /// What the configuration file declares.
    file: Desired,
    overrides: Overrides,
    /// Lists of sources that were loaded over the file's.
    lists: LoadedLists,
    /// Overrides that have no effect.
    ineffective: Vec<String>,
    directory: Rc<Directory>,
    engine: Engine<Kernel>,
    checker: Checker,
    resolver: Resolver,
    /// How the program is attached to the declared interfaces, or why it isn't.
    interfaces: BTreeMap<String, Result<Attached, String>>,
    /// What was said already about the host's settings.
    host_warnings: BTreeSet<String>,
}

impl Daemon {
    async fn run(mut self, mut sources: Sources) {
        loop {
            let mut event = Some(sources.next(self.engine.next_deadline()).await);
            let mut handled = 0;
            while let Some(next) = event.take() {
                if matches!(next, Event::Stop) {
                    info!("stopping; the kernel goes on with what it has");
                    return;
                }
                self.handle(next);
                handled += 1;
                if handled < BURST {
                    event = sources.waiting();
                }
            }
            self.reconcile();
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Request(request) => {
                let reply = self.command(request.command);
                // The client may have gone.
                let _ = request.reply.send(reply);
            }
            Event::Health(report) => self.health(&report),
            Event::Network(event) => self.network(event),
            Event::Reload => match self.reload() {
                Ok(changes) => info!(changes = changes.len(), "configuration read again"),
                Err(error) => {
                    let reasons = error.reasons().join("; ");
                    error!(
                        reasons,
                        "the configuration was not read again; nothing was changed"
                    );
                }
            },
            Event::Stop | Event::Tick => {}
        }
    }

    /// Brings the maps up to date. What fails is tried again.
    fn reconcile(&mut self) {
        let now = Instant::now();
        let reconciled = self.engine.reconcile(now);
        let swept = self.engine.sweep(now);
        if self.engine.take_freed() {
            // One that is declared again must be news to the readers.
            self.follow();
        }
        let failed = reconciled.err().map(|failed| failed.0).unwrap_or_default();
        for error in failed.into_iter().chain(swept.err()) {
            let error = anyhow::Error::from(error);
            error!("the maps could not be brought up to date; trying again: {error:#}");
        }
    }

    fn health(&mut self, report: &health::Report) {
        if !self.checker.probes(&report.id) {
            // It was on its way when its probe ended.
            return;
        }
        if report.state != HealthState::Up {
            let why = report.why.as_deref().unwrap_or("proof of death");
            warn!(service = %report.id.service, backend = %report.id.backend, why, "health: {}", report.state.as_str());
        }
        self.engine
            .observe_health(&report.id, report.state, Instant::now());
    }

    fn network(&mut self, event: netlink::Event) {
        match event {
            netlink::Event::NextHop { id, hop } => self.next_hop(&id, hop),
            netlink::Event::Link { ifindex, link } => self.link(ifindex, &link),
            netlink::Event::LinkGone { ifindex, name } => self.link_gone(ifindex, &name),
        }
    }

    fn next_hop(&mut self, id: &BackendId, hop: Result<crate::model::NextHop, Unresolved>) {
        if self.engine.backend(id).is_none() {
            // It was on its way when nobody wanted it any more.
            return;
        }
        let now = Instant::now();
        let failed = match hop {
            Err(Unresolved::NeighbourFailed { address, .. }) => Some(address),
            Ok(_) | Err(_) => None,
        };
        let probed = self.checker.probes(id);
        let hop = match hop {
            Ok(hop) => {
                self.check_mtu(id, &hop);
                if !probed {
                    self.engine.forget_health(id);
                }
                Hop::Found(hop)
            }
            Err(error) if error.is_pending() => Hop::Pending(error.to_string()),
            Err(error) => Hop::Failed(error.to_string()),
        };
        self.engine.observe_hop(id, hop, now);
        // On its own network nobody answers for it any more: that is proof. Behind a router it
        // would only be the router's.
        let dead = self.engine.backend(id).is_some_and(|backend| {
            matches!(backend.forward, Forward::L2 | Forward::Nat) && failed == Some(backend.address)
        });
        if dead {
            if probed {
                self.checker.proof_of_death(id);
            } else {
                self.engine.observe_health(id, HealthState::Dead, now);
            }
        }
    }

    /// Clients are told which packets are too long for the way to a backend, and send them once more:
    /// better none is. And who serves IPv6 can't tell them of less than every IPv6 link carries.
    fn check_mtu(&self, id: &BackendId, hop: &crate::model::NextHop) {
        let Some(backend) = self.engine.backend(id) else {
            return;
        };
        let overhead = crate::template::overhead(backend);
        let (service, backend, mtu) = (&id.service, &id.backend, hop.mtu);
        let declared = self.engine.desired().services.get(service);
        if declared.is_some_and(|declared| declared.vip.address.is_ipv6()) && mtu < 1280 + overhead
        {
            warn!(
                %service, %backend, mtu, overhead,
                "IPv6 packets up to 1280 bytes must fit, and longer ones than {} don't: they are dropped; raise the MTU of the way to the backend to {} or more",
                mtu.saturating_sub(overhead), 1280 + overhead,
            );
        } else if overhead > 0 && mtu < 1500 + overhead {
            warn!(
                %service, %backend, mtu, overhead,
                "full-sized packets of clients do not fit, and clients are told so (path MTU discovery): to spare them that, raise the MTU of the way to the backend to {}, or lower the MSS that it announces to {}",
                1500 + overhead, mtu.saturating_sub(overhead + 40),
            );
        }
    }

    /// Tells the readers whom to follow.
    fn follow(&mut self) {
        let reachable = self.engine.reachable();
        let targets = reachable
            .iter()
            .map(|(id, backend)| (id.clone(), backend.into()));
        self.resolver.set_targets(targets.collect());
        let mut probed = BTreeMap::new();
        for service in self.engine.desired().services.values() {
            let Some(check) = &service.health else {
                continue;
            };
            for (name, backend) in &service.backends {
                let id = BackendId {
                    service: service.name.clone(),
                    backend: name.clone(),
                };
                let target = health::Target {
                    address: backend.address,
                    check: check.of(service.vip.port, backend.port),
                };
                probed.insert(id, target);
            }
        }
        let health = self.engine.health();
        // Without probes nobody finds a backend suspect. That one is dead its neighbour entry said,
        // and will say when it isn't.
        let unprobed: Vec<BackendId> = health
            .iter()
            .filter(|(id, seen)| {
                seen.value == HealthState::Suspect
                    && !probed.contains_key(*id)
                    && self.engine.declares(id)
            })
            .map(|(id, _)| id.clone())
            .collect();
        let known = |id: &BackendId| {
            health
                .get(id)
                .map_or(HealthState::Unknown, |seen| seen.value)
        };
        let ended = self.checker.set_targets(probed, known);
        for id in ended.iter().chain(&unprobed) {
            self.engine.forget_health(id);
        }
    }

    /// Reads the configuration file and puts it in force.
    fn reload(&mut self) -> Result<Vec<String>, api::Error> {
        let config = Config::load(&self.config_path).map_err(|error| {
            let error = anyhow::Error::from(error);
            api::Error::Invalid(format!("{error:#}").lines().map(str::to_owned).collect())
        })?;
        if config.paths != self.paths {
            let reason = "paths: they can't change while weir runs: stop it and start it again";
            return Err(api::Error::Conflict(vec![reason.to_owned()]));
        }
        self.declare(config.desired, self.overrides.clone())
    }

    /// Puts a declaration in force: everything or nothing. Returns what changed.
    fn declare(&mut self, file: Desired, overrides: Overrides) -> Result<Vec<String>, api::Error> {
        self.declare_all(file, overrides, self.lists.clone())
    }

    /// Puts a declaration and loaded lists in force: everything or nothing.
    fn declare_all(
        &mut self,
        file: Desired,
        overrides: Overrides,
        lists: LoadedLists,
    ) -> Result<Vec<String>, api::Error> {
        let (mut desired, mut ineffective) = overrides.apply(&file);
        ineffective.extend(lists.apply(&mut desired));
        if overrides != self.overrides {
            // Somebody asks for a change just now: it is made, or it is refused.
            let news = ineffective.iter().filter(|l| !self.ineffective.contains(l));
            let news: Vec<String> = news.cloned().collect();
            if !news.is_empty() {
                return Err(api::Error::Conflict(news));
            }
        }
        let prepared = self.engine.prepare(desired.clone()).map_err(|error| {
            api::Error::Conflict(vec![format!("{:#}", anyhow::Error::from(error))])
        })?;
        let attached = self.attach_new(&desired)?;
        let mut stored = self.engine.reserve(&prepared);
        if stored.is_ok() && overrides != self.overrides {
            stored = self.directory.set_overrides(&overrides);
        }
        for (owner, list) in lists.changes(&self.lists) {
            stored = stored.and_then(|()| self.directory.set_list(owner, list));
        }
        if let Err(error) = stored {
            self.undo(&attached);
            let error = anyhow::Error::from(error);
            return Err(api::Error::Internal(format!("{error:#}")));
        }
        let changes = config::diff(self.engine.desired(), &desired);
        self.engine.commit(prepared, Instant::now());
        self.detach_old(&desired);
        self.file = file;
        self.overrides = overrides;
        self.lists = lists;
        for line in &ineffective {
            if !self.ineffective.contains(line) {
                warn!("a change made through the API has no effect: {line}");
            }
        }
        self.ineffective = ineffective;
        self.follow();
        self.reconcile();
        self.check_host_for_nat();
        Ok(changes.iter().map(ToString::to_string).collect())
    }
}
