//! A model of the whole data plane, in the plainest form: a packet and what the maps hold go in;
//! verdict, packet, counters and what the maps hold afterwards come out.
//!
//! It is written from the RFCs and ARCHITECTURE.md, and shares nothing with the XDP program: no
//! parsing, no hash, no checksum, no row rule, no outer header. Where the two differ, one of them is
//! wrong. It knows no guard: its services have neither lists of sources nor rates, which `prog_guard`
//! and `prog_rates` test. [`compare`] runs both on the same cases, [`generate`] makes cases up, and
//! [`fuzz`] looks for those that take new ways through the model.

pub mod build;
pub mod case;
pub mod clause;
pub mod compare;
pub mod flow;
pub mod fuzz;
pub mod generate;
pub mod hash;
pub mod icmp;
pub mod install;
pub mod read;
pub mod regressions;
pub mod shrink;
pub mod sum;
pub mod world;

use crate::program::{XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX};
use build::build;
use clause::{Clause, Walk};
use flow::{Asking, Tables};
use read::{Kind, Packet, read};
use world::{Backend, Counters, Out, Service, Way, World};

/// The model.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// Services and backends; the entries are in `tables`.
    pub world: World,
    /// The flow tables.
    pub tables: Tables,
    /// What was asked so far.
    pub walk: Walk,
    key: [u64; 16],
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// A number of `enum xdp_action`.
    pub verdict: u32,
    /// The frame as it leaves; of a dropped one nothing.
    pub frame: Option<Vec<u8>>,
    /// Counters that grew.
    pub counters: Counters,
}

impl Oracle {
    /// Returns a model of a world, with a secret and flow tables for so many entries each.
    #[must_use]
    pub fn new(world: World, key: [u64; 16], room: usize, walk: Walk) -> Self {
        let entries = world.entries.iter();
        let tables = Tables {
            entries: entries.map(|e| ((e.table, e.flow), *e)).collect(),
            room,
        };
        Self {
            world,
            tables,
            walk,
            key,
        }
    }

    /// Takes a packet.
    pub fn packet(&mut self, frame: &[u8]) -> Outcome {
        self.walk.begin();
        let outcome = self.take(frame, false);
        self.walk.end();
        outcome
    }

    /// Says what would become of a packet, as `weir explain` does: nothing changes.
    #[must_use]
    pub fn explain(&self, frame: &[u8]) -> Outcome {
        self.clone().take(frame, true)
    }

    fn take(&mut self, frame: &[u8], explains: bool) -> Outcome {
        let packet = match read(frame, &mut self.walk) {
            Ok(packet) => packet,
            Err(why) => return passed(frame, why),
        };
        let about = packet.kind == Kind::About;
        let Some(slot) = self.service(&packet) else {
            let why = if about {
                "pass_icmp"
            } else {
                "pass_no_service"
            };
            return passed(frame, why);
        };
        let mut counters = Counters::new();
        let mut count = |name: String, by: usize| {
            if by > 0 {
                *counters.entry(name).or_insert(0) += by as u64;
            }
        };
        count("icmp_error".to_owned(), usize::from(about));

        let service = &self.world.services[slot];
        let hash = hash::hash(&self.key, &packet.flow);
        let row = service.ring[(hash % service.ring.len() as u64) as usize];
        let mut target = row.owner;
        if self.walk.at(Clause::RowAsks, row.lookup) {
            let mut asking = Asking {
                world: &self.world,
                tables: &mut self.tables,
                walk: &mut self.walk,
                packet: &packet,
                service: slot as u32,
                row,
                explains,
                writes: !explains,
                refused: 0,
            };
            target = asking.backend();
            count(format!("service {slot} refused"), asking.refused as usize);
        }

        let mut dropped = |why: &str| {
            count(why.to_owned(), 1);
            count(format!("service {slot} dropped"), 1);
            XDP_DROP
        };
        let backend = self.world.backend(target);
        if self.walk.at(Clause::NoBackend, backend.is_none()) {
            let verdict = dropped("drop_no_backend");
            return outcome(verdict, None, counters);
        }
        let backend = backend.unwrap_or_else(|| Backend::blank(target));
        let unreachable = backend.way == Way::Unreachable;
        if self.walk.at(Clause::Unreachable, unreachable) {
            let verdict = dropped("drop_unreachable");
            return outcome(verdict, None, counters);
        }
        let verdict = if self.walk.at(Clause::SentBack, backend.out == Out::Back) {
            XDP_TX
        } else if self
            .walk
            .at(Clause::Redirectable, backend.out == Out::Elsewhere)
        {
            XDP_REDIRECT
        } else {
            let verdict = dropped("drop_unreachable");
            return outcome(verdict, None, counters);
        };
        for whom in [format!("backend {target}"), format!("service {slot}")] {
            count(format!("{whom} packets"), 1);
            count(format!("{whom} bytes"), frame.len());
            let opening = packet.kind == Kind::Opening;
            count(format!("{whom} new flows"), usize::from(opening));
        }
        let sent = build(frame, &packet, &backend, hash, &mut self.walk);
        outcome(verdict, Some(sent), counters)
    }

    /// Returns the slot of the service that a packet is for.
    fn service(&mut self, packet: &Packet) -> Option<usize> {
        let find = |port: u16| {
            let is = |service: &Service| {
                service.vip == packet.flow.vip
                    && service.protocol == packet.flow.protocol
                    && service.port == port
            };
            self.world.services.iter().position(is)
        };
        let (exact, any) = (find(packet.flow.vip_port), find(0));
        if self.walk.at(Clause::ExactPort, exact.is_some()) {
            exact
        } else if self.walk.at(Clause::AnyPort, any.is_some()) {
            any
        } else {
            None
        }
    }
}

fn passed(frame: &[u8], why: &str) -> Outcome {
    let counters = Counters::from([(why.to_owned(), 1)]);
    outcome(XDP_PASS, Some(frame.to_vec()), counters)
}

fn outcome(verdict: u32, frame: Option<Vec<u8>>, counters: Counters) -> Outcome {
    Outcome {
        verdict,
        frame,
        counters,
    }
}
