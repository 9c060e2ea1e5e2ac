//! IPv6 extension headers. Few packets have any, and there are many ways through them: they are walked
//! over in a function that the verifier looks at on its own (see [`crate::flow`]).

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{PROTO_TCP, PROTO_UDP, stats::Reason};

use lb_ebpf::packet::{Context, Frame};

use crate::parse::PROTO_ICMPV6;

const PROTO_HOP_BY_HOP: u8 = 0;
const PROTO_FRAGMENT: u8 = 44;
pub const PROTO_DESTINATION_OPTIONS: u8 = 60;

/// How many headers with options are walked over. RFC 8200 §4.1 names one hop-by-hop and up to two
/// destination options headers, the second of which may be behind a fragment header.
const MAX_OPTIONS: usize = 3;

/// A whole datagram.
pub const WHOLE: u8 = 0;
/// The first one of its fragments.
pub const FIRST: u8 = 1;
/// Another one of its fragments.
pub const LATER: u8 = 2;

/// No offset is larger: the verifier wants to see it.
const OFFSET_MASK: usize = 0x3fff;

/// What stands between an IPv6 header and the transport's.
pub struct Chain {
    /// The protocol behind it.
    pub proto: u8,
    /// Its length in bytes.
    pub len: usize,
    /// [`WHOLE`], also with a fragment header (RFC 6946); [`FIRST`]; or [`LATER`], in which case the
    /// rest is in another fragment.
    pub fragment: u8,
    /// The identification of a fragment, as it lies in memory.
    pub id: u32,
}

impl Chain {
    const MALFORMED: u64 = u64::MAX;

    /// Returns it as one number: bits 0 to 7 the protocol, 8 to 21 the length, 24 to 31 what of its
    /// datagram it is, and the identification.
    #[inline(always)]
    const fn pack(&self) -> u64 {
        self.proto as u64
            | (self.len as u64) << 8
            | (self.fragment as u64) << 24
            | (self.id as u64) << 32
    }

    #[inline(always)]
    const fn unpack(packed: u64) -> Self {
        Self {
            proto: packed as u8,
            len: (packed >> 8) as usize & OFFSET_MASK,
            fragment: (packed >> 24) as u8,
            id: (packed >> 32) as u32,
        }
    }
}

/// Walks over the extension headers at `offset` that may be walked over, of which the first is a
/// `proto`.
#[inline(always)]
pub fn chain(frame: Frame<'_>, offset: usize, proto: u8) -> Result<Chain, Reason> {
    if matches!(proto, PROTO_TCP | PROTO_UDP | PROTO_ICMPV6) {
        return Ok(Chain {
            proto,
            len: 0,
            fragment: WHOLE,
            id: 0,
        });
    }
    match extension_headers(frame.context(), offset as u32, proto.into()) {
        Chain::MALFORMED => Err(Reason::PassMalformed),
        packed => Ok(Chain::unpack(packed)),
    }
}

/// Returns a [`Chain`], packed.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn extension_headers(ctx: *mut xdp_md, offset: u32, proto: u32) -> u64 {
    let ctx = Context::new(XdpContext::new(ctx));
    walk(ctx.frame(), offset as usize & OFFSET_MASK, proto as u8)
        .map_or(Chain::MALFORMED, |chain| chain.pack())
}

#[inline(always)]
fn walk(frame: Frame<'_>, offset: usize, proto: u8) -> Option<Chain> {
    /// The offset and "more fragments" in a fragment header's second half word, in memory order.
    const OFFSET: u16 = u16::from_ne_bytes([0xff, 0xf8]);
    const MORE: u16 = u16::from_ne_bytes([0, 1]);
    let mut chain = Chain {
        proto,
        len: 0,
        fragment: WHOLE,
        id: 0,
    };
    options(frame, offset, MAX_OPTIONS, &mut chain)?;
    if chain.proto != PROTO_FRAGMENT {
        return Some(chain);
    }
    let header = frame.at::<8>(offset + chain.len)?;
    let position = header.get16::<2>();
    chain.proto = header.get8::<0>();
    chain.len += 8;
    chain.id = header.get32::<4>();
    if position & OFFSET != 0 {
        chain.fragment = LATER;
        return Some(chain);
    }
    if position & MORE != 0 {
        chain.fragment = FIRST;
    }
    options(frame, offset, 1, &mut chain)?;
    Some(chain)
}

/// Walks over up to `most` headers with options.
#[inline(always)]
fn options(frame: Frame<'_>, offset: usize, most: usize, chain: &mut Chain) -> Option<()> {
    for _ in 0..most {
        if chain.proto != PROTO_HOP_BY_HOP && chain.proto != PROTO_DESTINATION_OPTIONS {
            break;
        }
        let extension = frame.at::<2>(offset + chain.len)?;
        chain.proto = extension.get8::<0>();
        // RFC 8200 §4.3: in units of eight bytes, not counting the first.
        chain.len += (usize::from(extension.get8::<1>()) + 1) * 8;
    }
    Some(())
}
