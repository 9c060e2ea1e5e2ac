//! The loaded program with one service for TCP and one for UDP, whose rings hold the same rows.

use std::net::IpAddr;

use lb_common::flow::{FlowKey4, FlowKey6};
use lb_common::row::Row;
use lb_user::dataplane::{Dataplane as _, FlowKey};
use lb_user::model::{Forward, L4Protocol};

use crate::frame::{Address, L4, Packet};
use crate::program::{How, Program, XDP_TX, mac};

/// The program, and in which family it is met.
pub struct Rows {
    /// The program.
    pub program: Program,
    v4: bool,
    len: u32,
}

impl Rows {
    /// Gives a program these rows and so many backends.
    #[must_use]
    pub fn new(mut program: Program, v4: bool, backends: u32, rows: &[Row]) -> Self {
        let vip = match packet(v4, L4::Ack, 1).destination {
            Address::V4(address) => IpAddr::from(address),
            Address::V6(address) => IpAddr::from(address),
        };
        for protocol in [L4Protocol::Tcp, L4Protocol::Udp] {
            program.service(vip, 80, protocol, rows);
        }
        for number in 1..=backends {
            program.backend(number, vip, &How::new(Forward::L2, v4));
        }
        let len = rows.len() as u32;
        Self { program, v4, len }
    }

    /// Stores a row of both rings.
    pub fn set(&mut self, index: u32, row: Row) {
        for index in [index, self.len + index] {
            self.program.kernel.set_row(index, row).expect("a row");
        }
    }

    /// Returns the first packet of its kind of flow `port`.
    #[must_use]
    pub fn packet(&self, l4: L4, port: u16) -> Packet {
        packet(self.v4, l4, port)
    }

    /// Sends it. Returns the backend that it went to.
    #[track_caller]
    pub fn send(&mut self, l4: L4, port: u16) -> u32 {
        self.send_at(l4, port, l4.sequence())
    }

    /// Sends a packet of flow `port` with a sequence number. Returns the backend that it went to.
    #[track_caller]
    pub fn send_at(&mut self, l4: L4, port: u16, sequence: u32) -> u32 {
        let packet = Packet {
            sequence,
            ..self.packet(l4, port)
        };
        let (verdict, sent) = self.program.run(&packet.frame(None));
        assert_eq!(verdict, XDP_TX);
        let number = u32::from(sent[5]);
        assert_eq!(sent[..6], mac(number));
        number
    }

    /// Returns the key of flow `port`.
    #[must_use]
    pub fn key(&self, port: u16, l4: L4) -> FlowKey {
        let packet = self.packet(l4, port);
        let (src_port, dst_port) = (port.to_be_bytes(), packet.ports.1.to_be_bytes());
        let proto = if l4.is_udp() { 17 } else { 6 };
        match (packet.source, packet.destination) {
            (Address::V4(src), Address::V4(dst)) => FlowKey::V4(FlowKey4 {
                src,
                dst,
                src_port,
                dst_port,
                proto,
                _pad: [0; 3],
            }),
            (Address::V6(src), Address::V6(dst)) => FlowKey::V6(FlowKey6 {
                src,
                dst,
                src_port,
                dst_port,
                proto,
                _pad: [0; 3],
            }),
            _ => panic!("two families"),
        }
    }
}

fn packet(v4: bool, l4: L4, port: u16) -> Packet {
    if v4 {
        Packet::v4(l4, port)
    } else {
        Packet::v6(l4, port)
    }
}
