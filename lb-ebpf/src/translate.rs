//! Another address and port in the headers of a packet: the destination's of one to a VM, the
//! source's of an answer. In an ICMP error those of the packet that it quotes change too, which
//! went the other way (RFC 5508 §4).

use lb_common::{
    PROTO_TCP,
    nat::{NatSource, Translation, change16, update, update_udp},
};

use lb_ebpf::packet::{Bytes, Frame};

use crate::{
    family::{Family, V4, V6},
    maps,
    parse::Parsed,
    route::Route,
};

/// Where a packet's headers are: offsets in the frame.
#[derive(Clone, Copy)]
pub struct Place {
    /// The IP header.
    l3: usize,
    /// The transport header, or that of the ICMP error; 0 if there is none in this packet, which is
    /// a later fragment.
    l4: usize,
    /// ICMP error: the transport header of the packet that it quotes. Else 0.
    quoted: usize,
    /// The end of the IP packet.
    end: usize,
    /// The flow's protocol.
    proto: u8,
    /// Where an Ethernet header without a tag begins.
    pub front: usize,
}

/// A place in two numbers, which take none of a caller's stack: offsets of 16 bits each, IP header
/// lowest, then transport header, quoted header; protocol and `front` in 8 bits each; and the end.
#[derive(Clone, Copy)]
pub struct Packed(pub u64, pub u32);

impl Packed {
    /// Returns where a packet's headers are.
    #[inline(always)]
    pub fn of<F: Family>(packet: &Parsed<F>) -> Self {
        let offsets = packet.l3 as u64
            | (packet.l4 as u64) << 16
            | (packet.quoted as u64) << 32
            | u64::from(F::protocol(&packet.key)) << 48
            | (packet.l3 as u64 - 14) << 56;
        Self(offsets, packet.l3 as u32 + u32::from(packet.ip_len))
    }

    /// Returns the place.
    #[inline(always)]
    pub fn unpack(self) -> Place {
        let Self(offsets, end) = self;
        // The mask is how the verifier knows that they are small. `front` follows from `l3`, but if
        // LLVM knew, it would make one check of two, and the verifier not see what is checked.
        let at = |shift: u32| (offsets >> shift) as usize & (FAR - 1);
        Place {
            l3: at(0),
            l4: at(16),
            quoted: at(32),
            end: end as usize,
            proto: (offsets >> 48) as u8,
            front: (offsets >> 56) as usize,
        }
    }
}

/// Before this every header of ours begins, also behind two IP headers with three extension headers
/// each; and the verifier takes offsets of up to 2^16 bytes.
const FAR: usize = 1 << 14;

/// Length of an ICMP header, in bytes.
const ICMP: usize = 8;

impl Place {
    /// Returns the packet's own ports; an error has none.
    #[inline(always)]
    fn ports(&self, frame: Frame<'_>) -> Option<u32> {
        if self.quoted != 0 || self.l4 == 0 {
            return Some(0);
        }
        Some(frame.at::<4>(self.l4)?.get32::<0>())
    }

    /// Returns the VM's port and the protocol, as they lie in a service key.
    #[inline(always)]
    fn port_and_protocol(&self, frame: Frame<'_>) -> Option<u32> {
        let port = if self.l4 == 0 {
            return None;
        } else if self.quoted == 0 {
            frame.at::<4>(self.l4)?.get16::<0>()
        } else {
            frame.at::<4>(self.quoted)?.get16::<2>()
        };
        let [a, b] = port.to_ne_bytes();
        Some(u32::from_ne_bytes([a, b, self.proto, 0]))
    }
}

/// What translation needs of a family. Offsets are of headers that the parser has seen.
pub trait Translate: Family {
    /// Its number on Ethernet.
    const ETHERTYPE: u16;

    /// Returns what answers of the packet's source come from. Of an ICMP error that is the
    /// destination of the packet that it quotes.
    fn nat_source(frame: Frame<'_>, place: &Place) -> Option<&'static NatSource>;

    /// Returns the question for a packet's way, or nothing if it may not be forwarded.
    fn question(frame: Frame<'_>, place: &Place) -> Option<Route>;

    /// Returns whether a router may cut the packet into pieces.
    fn may_be_cut(frame: Frame<'_>, place: &Place) -> bool;

    /// Takes one from the time to live or the hop limit.
    fn decrement_hops(frame: Frame<'_>, place: &Place) -> Option<()>;

    /// Puts another source into an `ANSWER`, another destination into another packet.
    fn translate<const ANSWER: bool>(
        frame: Frame<'_>,
        place: &Place,
        translation: &Translation,
    ) -> Option<()>;
}

impl Translate for V4 {
    const ETHERTYPE: u16 = 0x0800;

    #[inline(always)]
    fn nat_source(frame: Frame<'_>, place: &Place) -> Option<&'static NatSource> {
        let address = if place.quoted == 0 {
            frame.at::<20>(place.l3)?.get32::<12>()
        } else {
            frame
                .at::<{ ICMP + 20 }>(place.l4)?
                .get32::<{ ICMP + 16 }>()
        };
        let mut key = [address, place.port_and_protocol(frame)?];
        // SAFETY: an element may be replaced while we read it, in which case we read the old one;
        // the kernel frees it after this run.
        if let Some(source) = unsafe { maps::NAT_SOURCES_V4.get(&key) } {
            return Some(source);
        }
        key[1] = any_port(key[1]);
        // SAFETY: as above.
        unsafe { maps::NAT_SOURCES_V4.get(&key) }
    }

    #[inline(always)]
    fn question(frame: Frame<'_>, place: &Place) -> Option<Route> {
        let header = frame.at::<20>(place.l3)?;
        if header.get8::<8>() <= 1 {
            return None;
        }
        Some(Route::of_v4(header, place.ports(frame)?))
    }

    #[inline(always)]
    fn may_be_cut(frame: Frame<'_>, place: &Place) -> bool {
        let header = frame.at::<20>(place.l3);
        header.is_some_and(|header| header.get8::<6>() & 0x40 == 0)
    }

    #[inline(always)]
    fn decrement_hops(frame: Frame<'_>, place: &Place) -> Option<()> {
        let header = frame.at::<20>(place.l3)?;
        let word = |hops: u8| u16::from_ne_bytes([hops, header.get8::<9>()]);
        let hops = header.get8::<8>();
        let delta = change16(word(hops), word(hops.wrapping_sub(1)));
        header.set8::<8>(hops.wrapping_sub(1));
        header.set16::<10>(update(header.get16::<10>(), delta));
        Some(())
    }

    #[inline(always)]
    fn translate<const ANSWER: bool>(
        frame: Frame<'_>,
        place: &Place,
        to: &Translation,
    ) -> Option<()> {
        let header = frame.at::<20>(place.l3)?;
        if place.quoted == 0 {
            set_v4::<ANSWER>(header, to);
            return transport::<ANSWER>(frame, place, to);
        }
        let message = frame.at::<{ ICMP + 20 }>(place.l4)?;
        let (icmp, quoted) = (message.part::<0, ICMP>(), message.part::<ICMP, 20>());
        // A router between us and the VM speaks for itself.
        if !ANSWER || header.get32::<12>() == quoted.get32::<16>() {
            set_v4::<ANSWER>(header, to);
        }
        let before = quoted.get16::<10>();
        // The other end of a packet that went the other way.
        if ANSWER {
            set_v4::<false>(quoted, to);
        } else {
            set_v4::<true>(quoted, to);
        }
        let delta = u64::from(to.address_delta)
            + change16(before, quoted.get16::<10>())
            + quoted_transport::<ANSWER>(frame, place, to)?;
        icmp.set16::<2>(update(icmp.get16::<2>(), delta));
        Some(())
    }
}

impl Translate for V6 {
    const ETHERTYPE: u16 = 0x86dd;

    #[inline(always)]
    fn nat_source(frame: Frame<'_>, place: &Place) -> Option<&'static NatSource> {
        let address = if place.quoted == 0 {
            frame.at::<40>(place.l3)?.part::<8, 16>()
        } else {
            frame
                .at::<{ ICMP + 40 }>(place.l4)?
                .part::<{ ICMP + 24 }, 16>()
        };
        let mut key = [
            address.get32::<0>(),
            address.get32::<4>(),
            address.get32::<8>(),
            address.get32::<12>(),
            place.port_and_protocol(frame)?,
        ];
        // SAFETY: as for IPv4.
        if let Some(source) = unsafe { maps::NAT_SOURCES_V6.get(&key) } {
            return Some(source);
        }
        key[4] = any_port(key[4]);
        // SAFETY: as for IPv4.
        unsafe { maps::NAT_SOURCES_V6.get(&key) }
    }

    #[inline(always)]
    fn question(frame: Frame<'_>, place: &Place) -> Option<Route> {
        const ICMPV6: u8 = 58;
        let header = frame.at::<40>(place.l3)?;
        // What is for a link's own addresses stays there (RFC 4291 §2.5.6).
        let [a, b, ..] = header.get64::<24>().to_ne_bytes();
        let link_local = a == 0xfe && b & 0xc0 == 0x80;
        if header.get8::<7>() <= 1 || link_local {
            return None;
        }
        let proto = if place.quoted == 0 {
            place.proto
        } else {
            ICMPV6
        };
        Some(Route::of_v6(header, proto, place.ports(frame)?))
    }

    #[inline(always)]
    fn may_be_cut(_: Frame<'_>, _: &Place) -> bool {
        false
    }

    #[inline(always)]
    fn decrement_hops(frame: Frame<'_>, place: &Place) -> Option<()> {
        let header = frame.at::<40>(place.l3)?;
        header.set8::<7>(header.get8::<7>().wrapping_sub(1));
        Some(())
    }

    #[inline(always)]
    fn translate<const ANSWER: bool>(
        frame: Frame<'_>,
        place: &Place,
        to: &Translation,
    ) -> Option<()> {
        let header = frame.at::<40>(place.l3)?;
        if place.quoted == 0 {
            set_v6::<ANSWER>(header, to);
            return transport::<ANSWER>(frame, place, to);
        }
        let message = frame.at::<{ ICMP + 40 }>(place.l4)?;
        let (icmp, quoted) = (message.part::<0, ICMP>(), message.part::<ICMP, 40>());
        let own = header.get64::<8>() == quoted.get64::<24>()
            && header.get64::<16>() == quoted.get64::<32>();
        let mut delta = u64::from(to.address_delta);
        if !ANSWER || own {
            set_v6::<ANSWER>(header, to);
            // Its addresses are in the checksum too (RFC 4443 §2.3).
            delta += u64::from(to.address_delta);
        }
        if ANSWER {
            set_v6::<false>(quoted, to);
        } else {
            set_v6::<true>(quoted, to);
        }
        delta += quoted_transport::<ANSWER>(frame, place, to)?;
        icmp.set16::<2>(update(icmp.get16::<2>(), delta));
        Some(())
    }
}

/// Returns a word with port and protocol for any port.
#[inline(always)]
fn any_port(word: u32) -> u32 {
    word & u32::from_ne_bytes([0, 0, 0xff, 0xff])
}

/// Sets the source or the destination of an IPv4 header.
#[inline(always)]
fn set_v4<const SOURCE: bool>(header: Bytes<'_, 20>, to: &Translation) {
    if SOURCE {
        header.set32::<12>(to.address[0]);
    } else {
        header.set32::<16>(to.address[0]);
    }
    header.set16::<10>(update(header.get16::<10>(), to.address_delta.into()));
}

/// Sets the source or the destination of an IPv6 header.
#[inline(always)]
fn set_v6<const SOURCE: bool>(header: Bytes<'_, 40>, to: &Translation) {
    let [a, b, c, d] = to.address;
    if SOURCE {
        header.set32::<8>(a);
        header.set32::<12>(b);
        header.set32::<16>(c);
        header.set32::<20>(d);
    } else {
        header.set32::<24>(a);
        header.set32::<28>(b);
        header.set32::<32>(c);
        header.set32::<36>(d);
    }
}

/// Sets the source or the destination port. Returns what that adds to the sum.
#[inline(always)]
fn set_port<const SOURCE: bool>(ports: Bytes<'_, 4>, to: &Translation) -> u64 {
    if to.port == 0 {
        return 0;
    }
    let before = if SOURCE {
        ports.get16::<0>()
    } else {
        ports.get16::<2>()
    };
    if SOURCE {
        ports.set16::<0>(to.port);
    } else {
        ports.set16::<2>(to.port);
    }
    change16(before, to.port)
}

/// Translates the transport header, if there is one in this packet.
#[inline(always)]
fn transport<const ANSWER: bool>(frame: Frame<'_>, place: &Place, to: &Translation) -> Option<()> {
    if place.l4 == 0 {
        return Some(());
    }
    set_port::<ANSWER>(frame.at::<4>(place.l4)?, to);
    if place.proto == PROTO_TCP {
        let header = frame.at::<20>(place.l4)?;
        header.set16::<16>(update(header.get16::<16>(), to.delta.into()));
    } else {
        let header = frame.at::<8>(place.l4)?;
        header.set16::<6>(update_udp(header.get16::<6>(), to.delta.into()));
    }
    Some(())
}

/// Translates the transport header of a quoted packet, as far as it is quoted. Returns what that
/// adds to the sum of the ICMP message.
#[inline(always)]
fn quoted_transport<const ANSWER: bool>(
    frame: Frame<'_>,
    place: &Place,
    to: &Translation,
) -> Option<u64> {
    let ports = frame.at::<4>(place.quoted)?;
    let port = if ANSWER {
        set_port::<false>(ports, to)
    } else {
        set_port::<true>(ports, to)
    };
    let checksum = if place.proto == PROTO_TCP {
        if place.quoted + 18 > place.end {
            return Some(port);
        }
        let header = frame.at::<18>(place.quoted)?;
        let before = header.get16::<16>();
        let after = update(before, to.delta.into());
        header.set16::<16>(after);
        change16(before, after)
    } else {
        if place.quoted + 8 > place.end {
            return Some(port);
        }
        let header = frame.at::<8>(place.quoted)?;
        let before = header.get16::<6>();
        let after = update_udp(before, to.delta.into());
        header.set16::<6>(after);
        change16(before, after)
    };
    Some(port + checksum)
}
