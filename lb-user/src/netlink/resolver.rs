use std::collections::btree_map::Entry;
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
use super::pace::Pace;
use super::resolve::{Route, Target, Unresolved, neighbour_of, resolve};
use super::tables::{Link, Neighbour, Tables};
use crate::model::{BackendId, NextHop};

/// The longest pause between two readings of all tables, however often routes change.
const TABLES: Duration = Duration::from_secs(1);
/// The longest pause between two resolutions of all targets, however often neighbours change.
const HOPS: Duration = Duration::from_millis(50);
/// Traffic that XDP forwards does not confirm neighbours to the kernel: ask it to make sure.
const REFRESH: Duration = Duration::from_secs(5);

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

/// What a message of the kernel means for the mirrored tables.
enum News {
    /// They say so already.
    Nothing,
    /// Another neighbour, which they have now.
    Neighbour,
    /// Anything else, also "messages were lost": they have to be read anew.
    Other,
}

/// The kernel's answers by address and interface: backends of many services share theirs.
type Answers = BTreeMap<(IpAddr, Option<u32>), Result<Route, Unresolved>>;

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
        let mut tables = Pace::new(TABLES);
        let mut hops = Pace::new(HOPS);
        loop {
            let wake = [tables.due(), hops.due()].into_iter().flatten().min();
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
                    match self.apply(&payload) {
                        News::Nothing => {}
                        News::Neighbour => hops.note(Instant::now()),
                        News::Other => tables.note(Instant::now()),
                    }
                }
                () = sleep_until(wake.map_or(refresh, |wake| wake.min(refresh))) => {
                    if tables.is_due(Instant::now()) {
                        match self.look().await {
                            Ok(()) => tables.looked(Instant::now()),
                            Err(error) => {
                                warn!(%error, "the kernel's tables could not be read; trying again");
                                tables.failed(Instant::now());
                            }
                        }
                    }
                    if hops.is_due(Instant::now()) {
                        self.send_hops().await;
                        hops.looked(Instant::now());
                    }
                    if refresh <= Instant::now() {
                        self.refresh().await;
                        refresh = Instant::now() + REFRESH;
                    }
                }
            }
        }
    }

    /// Takes over what a message says of a neighbour.
    fn apply(&mut self, payload: &NetlinkPayload<RouteNetlinkMessage>) -> News {
        let changed = if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(new)) =
            payload
        {
            kernel::put_neighbour(&mut self.tables, new)
        } else if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(old)) = payload
        {
            kernel::remove_neighbour(&mut self.tables, old)
        } else {
            return News::Other;
        };
        if changed {
            News::Neighbour
        } else {
            News::Nothing
        }
    }

    async fn set_targets(&mut self, targets: BTreeMap<BackendId, Target>) {
        self.sent.retain(|id, _| targets.contains_key(id));
        self.routes.retain(|id, _| targets.contains_key(id));
        let mut answers = Answers::new();
        for (id, target) in &targets {
            if self.targets.get(id) != Some(target) {
                self.sent.remove(id);
                let route = self.route(target, &mut answers).await;
                self.routes.insert(id.clone(), route);
            }
        }
        self.targets = targets;
        self.send_hops().await;
    }

    async fn look(&mut self) -> Result<(), rtnetlink::Error> {
        let tables = kernel::tables(&self.handle).await?;
        let before = std::mem::replace(&mut self.tables, tables);
        self.send_links(&before.links).await;
        let mut answers = Answers::new();
        let targets = self.targets.clone();
        for (id, target) in &targets {
            let route = self.route(target, &mut answers).await;
            self.routes.insert(id.clone(), route);
        }
        self.send_hops().await;
        Ok(())
    }

    /// Finds a target's route, asking the kernel only what `answers` doesn't hold.
    async fn route(&self, target: &Target, answers: &mut Answers) -> Result<Route, Unresolved> {
        let (interface, port) = match &target.interface {
            None => (None, None),
            Some(name) => match self.tables.link_named(name) {
                // A bridge's port has neither addresses nor neighbours: those are the bridge's.
                Some((index, _)) => match self.tables.bridge_of(index) {
                    Some(bridge) => (Some(bridge), Some(index)),
                    None => (Some(index), None),
                },
                None => return Err(Unresolved::NoInterface(name.clone())),
            },
        };
        if let (Some(interface), true) = (interface, target.on_link) {
            // The operator says that it is there.
            return Ok(Route {
                interface,
                port,
                gateway: None,
                source: None,
                mtu: None,
                local: false,
            });
        }
        let question = (target.address, interface);
        let answer = match answers.get(&question) {
            Some(answer) => answer.clone(),
            None => {
                let answer = kernel::route(&self.handle, target.address, interface).await;
                let answer = answer.map_err(|error| Unresolved::NoRoute {
                    address: target.address,
                    reason: reason(&error),
                });
                answers.insert(question, answer.clone());
                answer
            }
        };
        answer.map(|route| Route { port, ..route })
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
            // Once: it says when it has an answer, or gives up.
            let known = self.tables.neighbours.entry((interface, address));
            if let Entry::Vacant(place) = known {
                place.insert(Neighbour::Pending);
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
                Some(Neighbour::Known { fresh: true, .. })
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
