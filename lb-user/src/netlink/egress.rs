use super::resolve::Unresolved;
use super::tables::{LinkKind, Tables};
use crate::model::{Mac, TagProtocol, Vlan, VlanTag};

/// Where a frame leaves the host, and what it has to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Egress {
    /// The interface that sends it.
    pub ifindex: u32,
    /// Its VLAN tags.
    pub vlan: Option<Vlan>,
    /// The smallest MTU on its way through the host.
    pub mtu: u32,
}

/// How far down interfaces lie on each other at most: VLAN, bridge, VLAN, NIC.
const DEPTH: usize = 4;

impl Egress {
    /// Follows a frame for `mac` that the host would send from an interface down to the one that
    /// puts it on the wire: XDP sends from there, and interfaces above it never see the frame.
    /// Where a bridge is on the way, `port` is taken instead of what the bridge has learned.
    pub fn find(
        tables: &Tables,
        interface: u32,
        port: Option<u32>,
        mac: Mac,
    ) -> Result<Self, Unresolved> {
        let mut at = Self {
            ifindex: interface,
            vlan: None,
            mtu: u32::MAX,
        };
        for _ in 0..DEPTH {
            let link = tables
                .links
                .get(&at.ifindex)
                .ok_or_else(|| Unresolved::NoInterface(at.ifindex.to_string()))?;
            if !link.up {
                return Err(Unresolved::LinkDown(link.name.clone()));
            }
            at.mtu = at.mtu.min(link.mtu);
            let unsupported = |reason| Unresolved::Unsupported {
                link: link.name.clone(),
                reason,
            };
            match link.kind {
                LinkKind::Plain => return Ok(at),
                LinkKind::Unsupported(reason) => return Err(unsupported(reason)),
                LinkKind::Vlan { parent, tag } => {
                    let tags = Vlan::push(at.vlan, tag);
                    at.vlan = Some(tags.ok_or_else(|| unsupported(THREE_TAGS))?);
                    at.ifindex = parent;
                }
                LinkKind::Bridge { filters } => {
                    // A bridge that doesn't filter takes a tag for a part of the content, and one
                    // that does those of another kind.
                    let own = || VlanTag::customer(tables.untagged_vlan(at.ifindex).unwrap_or(0));
                    let outermost = at.vlan.map(|vlan| vlan.outermost);
                    let seen = outermost.filter(|tag| tag.protocol == TagProtocol::Customer);
                    let tag = filters.then(|| seen.unwrap_or_else(own));
                    let filtered = tag.map(|tag| tag.id);
                    let learned = || tables.ports.get(&(at.ifindex, filtered, mac)).copied();
                    at.ifindex = port.or_else(learned).ok_or_else(|| Unresolved::NoPort {
                        bridge: link.name.clone(),
                        mac,
                    })?;
                    if let Some(tag) = tag {
                        let inside = match seen {
                            Some(_) => at.vlan.and_then(Vlan::pop),
                            None => at.vlan,
                        };
                        at.vlan = if leaves_tagged(tables, at.ifindex, tag.id)? {
                            let tags = Vlan::push(inside, tag);
                            Some(tags.ok_or_else(|| unsupported(THREE_TAGS))?)
                        } else {
                            inside
                        };
                    }
                }
            }
        }
        Err(Unresolved::Unsupported {
            link: interface.to_string(),
            reason: "too many interfaces lie on each other",
        })
    }
}

const THREE_TAGS: &str = "frames would have three VLAN tags";

/// Returns whether frames of a VLAN leave by a port of a bridge that filters VLANs with their tag.
fn leaves_tagged(tables: &Tables, port: u32, vlan: u16) -> Result<bool, Unresolved> {
    match tables.vlans.get(&(port, vlan)) {
        Some(member) => Ok(!member.untagged),
        None => Err(Unresolved::Unsupported {
            link: tables.name_of(port),
            reason: "the port is not in the VLAN in which its bridge would send the frame",
        }),
    }
}
