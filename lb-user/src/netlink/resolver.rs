use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::kernel;
use super::resolve::{Route, Target, Unresolved, neighbour_of, resolve};
use super::tables::{Link, Neighbour, Tables};
use crate::model::{BackendId, NextHop};

/// After a change the kernel mostly has more to say: wait this long, then look once.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// Traffic that XDP forwards does not confirm neighbours to the kernel: ask it to make sure.
const REFRESH: Duration = Duration::from_secs(5);
/// After a failure.
const RETRY: Duration = Duration::from_secs(1);

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// Why the kernel can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No netlink socket.
    #[error("opening a netlink socket")]
    Socket(#[source] io::Error),
    /// A question failed.
    #[error("asking the kernel for its interfaces and neighbours")]
    Request(#[from] rtnetlink::Error),
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// How a backend is reached.
    NextHop {
        /// The backend.
        id: BackendId,
        /// Its next hop.
        hop: Result<NextHop, Unresolved>,
    },
    /// An interface came or changed.
    Link {
        /// Its index.
        ifindex: u32,
        /// The interface.
        link: Link,
    },
    /// An interface went.
    LinkGone {
        /// Its index.
        ifindex: u32,
        /// Its name.
        name: String,
    },
}

/// Follows the next hops of a set of targets. Dropping it ends that.
#[derive(Debug)]
pub struct Resolver {
    targets: watch::Sender<BTreeMap<BackendId, Target>>,
}

impl Resolver {
    /// Starts following, in the network namespace of the calling thread. Only changes are sent.
    pub async fn spawn(events: mpsc::Sender<Event>) -> Result<Self, NetlinkError> {
        let (connection, handle, messages) =
            rtnetlink::new_multicast_connection(&GROUPS).map_err(NetlinkError::Socket)?;
        tokio::spawn(connection);
        let (targets, watched) = watch::channel(BTreeMap::new());
        let tables = kernel::tables(&handle).await?;
        let follower = Follower {
            handle,
            events,
            tables,
            targets: BTreeMap::new(),
            routes: BTreeMap::new(),
            sent: BTreeMap::new(),
        };
        tokio::spawn(follower.run(watched, messages));
        Ok(Self { targets })
    }

    /// Sets whom to follow.
    pub fn set_targets(&self, targets: BTreeMap<BackendId, Target>) {
        self.targets.send_if_modified(|current| {
            let changed = *current != targets;
            *current = targets;
            changed
        });
    }
}

/// What a message of the kernel makes worth reading again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stale {
    neighbours: bool,
    all: bool,
}

impl Stale {
    fn note(&mut self, payload: &NetlinkPayload<RouteNetlinkMessage>) {
        let neighbour = matches!(
            payload,
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewNeighbour(_) | RouteNetlinkMessage::DelNeighbour(_)
            )
        );
        // Anything else, also "messages were lost", is worth a look at everything.
        self.neighbours |= neighbour;
        self.all |= !neighbour;
    }
}

type Messages = futures_util::stream::BoxStream<'static, NetlinkPayload<RouteNetlinkMessage>>;

struct Follower {
    handle: Handle,
    events: mpsc::Sender<Event>,
    tables: Tables,
    targets: BTreeMap<BackendId, Target>,
    routes: BTreeMap<BackendId, Result<Route, Unresolved>>,
    sent: BTreeMap<BackendId, Result<NextHop, Unresolved>>,
}

impl Follower {
    async fn run(
        mut self,
        mut targets: watch::Receiver<BTreeMap<BackendId, Target>>,
        messages: impl futures_util::Stream<
            Item = (
                netlink_packet_core::NetlinkMessage<RouteNetlinkMessage>,
                rtnetlink::sys::SocketAddr,
            ),
        > + Send
        + 'static,
    ) {
        self.send_links(&BTreeMap::new()).await;
        let mut messages: Messages = messages.map(|(message, _)| message.payload).boxed();
        let mut refresh = Instant::now() + REFRESH;
        let mut look: Option<Instant> = None;
        let mut stale = Stale::default();
        loop {
            let wake = look.map_or(refresh, |look| look.min(refresh));
            tokio::select! {
                changed = targets.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let targets = targets.borrow_and_update().clone();
                    self.set_targets(targets).await;
                }
                message = messages.next() => {
                    let Some(payload) = message else { return };
                    stale.note(&payload);
                    look.get_or_insert_with(|| Instant::now() + DEBOUNCE);
                }
                () = sleep_until(wake) => {
                    let now = Instant::now();
                    if look.is_some_and(|look| look <= now) {
                        look = None;
                        if let Err(error) = self.look(std::mem::take(&mut stale)).await {
                            warn!(%error, "the kernel's tables could not be read; trying again");
                            stale.all = true;
                            look = Some(now + RETRY);
                        }
                    }
                    if refresh <= now {
                        self.refresh().await;
                        refresh = now + REFRESH;
                    }
                }
            }
        }
    }

    async fn set_targets(&mut self, targets: BTreeMap<BackendId, Target>) {
        self.sent.retain(|id, _| targets.contains_key(id));
        self.routes.retain(|id, _| targets.contains_key(id));
        for (id, target) in &targets {
            if self.targets.get(id) != Some(target) {
                self.sent.remove(id);
                let route = self.route(target).await;
                self.routes.insert(id.clone(), route);
            }
        }
        self.targets = targets;
        self.send_hops().await;
    }

    async fn look(&mut self, stale: Stale) -> Result<(), rtnetlink::Error> {
        if stale.all {
            let tables = kernel::tables(&self.handle).await?;
            let before = std::mem::replace(&mut self.tables, tables);
            self.send_links(&before.links).await;
            let targets = self.targets.clone();
            for (id, target) in &targets {
                let route = self.route(target).await;
                self.routes.insert(id.clone(), route);
            }
        } else {
            kernel::read_neighbours(&self.handle, &mut self.tables).await?;
        }
        self.send_hops().await;
        Ok(())
    }

    async fn route(&self, target: &Target) -> Result<Route, Unresolved> {
        let interface = match &target.interface {
            None => None,
            Some(name) => match self.tables.link_named(name) {
                Some((index, _)) => Some(index),
                None => return Err(Unresolved::NoInterface(name.clone())),
            },
        };
        match (interface, target.on_link) {
            // The operator says that it is there.
            (Some(interface), true) => Ok(Route {
                interface,
                gateway: None,
                source: None,
                mtu: None,
                local: false,
            }),
            _ => kernel::route(&self.handle, target.address, interface)
                .await
                .map_err(|error| Unresolved::NoRoute {
                    address: target.address,
                    reason: reason(&error),
                }),
        }
    }

    async fn send_links(&self, before: &BTreeMap<u32, Link>) {
        for (ifindex, link) in before {
            let same = self
                .tables
                .links
                .get(ifindex)
                .is_some_and(|now| now.name == link.name);
            if !same {
                let (ifindex, name) = (*ifindex, link.name.clone());
                self.send(Event::LinkGone { ifindex, name }).await;
            }
        }
        for (ifindex, link) in &self.tables.links {
            if before.get(ifindex) != Some(link) {
                let (ifindex, link) = (*ifindex, link.clone());
                self.send(Event::Link { ifindex, link }).await;
            }
        }
    }

    async fn send_hops(&mut self) {
        let mut ask = BTreeSet::new();
        let mut news = Vec::new();
        for (id, target) in &self.targets {
            let Some(route) = self.routes.get(id) else {
                continue;
            };
            let hop = route
                .as_ref()
                .map_err(Unresolved::clone)
                .and_then(|route| resolve(target, route, &self.tables));
            if let (Err(Unresolved::Pending { .. }), Ok(route)) = (&hop, route) {
                ask.insert(neighbour_of(target, route));
            }
            let sent = self.sent.get(id);
            // While the kernel asks again for a neighbour that it forgot, the old answer holds.
            let pending =
                |hop: &Result<_, Unresolved>| hop.as_ref().is_err_and(Unresolved::is_pending);
            let holds = pending(&hop) && sent.is_some_and(|sent| !pending(sent));
            if !holds && sent != Some(&hop) {
                news.push((id.clone(), hop));
            }
        }
        for (id, hop) in news {
            self.sent.insert(id.clone(), hop.clone());
            self.send(Event::NextHop { id, hop }).await;
        }
        for (interface, address) in ask {
            // Not one that it asks for already, or every look would bring another.
            if self.tables.neighbours.get(&(interface, address)) != Some(&Neighbour::Pending) {
                kernel::use_neighbour(&self.handle, interface, address).await;
            }
        }
    }

    /// Makes the kernel confirm the neighbours that it isn't sure of.
    async fn refresh(&self) {
        let mut ask: BTreeSet<(u32, IpAddr)> = BTreeSet::new();
        for (id, target) in &self.targets {
            let Some(Ok(route)) = self.routes.get(id) else {
                continue;
            };
            let neighbour = neighbour_of(target, route);
            let fresh = matches!(
                self.tables.neighbours.get(&neighbour),
                Some(Neighbour::Known { fresh: true, .. } | Neighbour::Pending)
            );
            if target.mac.is_none() && !fresh && !route.local {
                ask.insert(neighbour);
            }
        }
        for (interface, address) in ask {
            kernel::use_neighbour(&self.handle, interface, address).await;
        }
    }

    async fn send(&self, event: Event) {
        // Nobody listens any more: the daemon is stopping.
        let _ = self.events.send(event).await;
    }
}

fn reason(error: &rtnetlink::Error) -> String {
    if let rtnetlink::Error::NetlinkError(message) = error {
        message.to_io().to_string()
    } else {
        error.to_string()
    }
}
