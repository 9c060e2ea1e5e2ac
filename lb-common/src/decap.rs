//! What the decapsulating program and its command share, and the rules of RFC 6040.

/// Names of the maps, as they are pinned.
pub mod map_names {
    /// `HashMap<[u8; 4], u8>`: the host's IPv4 addresses.
    pub const ADDRESSES_V4: &str = "ADDRESSES_V4";
    /// `HashMap<[u8; 16], u8>`: its IPv6 addresses.
    pub const ADDRESSES_V6: &str = "ADDRESSES_V6";
    /// `Array<u32>` of one entry: the UDP port of GUE in host order.
    pub const GUE_PORT: &str = "GUE_PORT";
    /// `PerCpuArray<u64>` by [`super::Outcome`].
    pub const OUTCOMES: &str = "OUTCOMES";
}

/// How many addresses of each family a host may have.
pub const MAX_ADDRESSES: u32 = 256;

/// What happened to a packet.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Unwrapped: IPv4 in IPv4.
    Ipv4InIpv4 = 0,
    /// Unwrapped: IPv6 in IPv4.
    Ipv6InIpv4 = 1,
    /// Unwrapped: IPv4 in IPv6.
    Ipv4InIpv6 = 2,
    /// Unwrapped: IPv6 in IPv6.
    Ipv6InIpv6 = 3,
    /// Unwrapped: GUE over IPv4.
    GueOverIpv4 = 4,
    /// Unwrapped: GUE over IPv6.
    GueOverIpv6 = 5,
    /// Passed: no tunnel, or none of these.
    PassOther = 6,
    /// Passed: a tunnel's packet for another address.
    PassAddress = 7,
    /// Passed: a tunnel's packet whose headers are cut off or contradict themselves, or a GUE
    /// packet with options.
    PassMalformed = 8,
    /// Passed: a fragment of a tunnel's packet; the host's own stack may put it together.
    PassFragment = 9,
    /// Dropped: the tunnel was congested, and the packet inside can't say so (RFC 6040 §4.2).
    DropCongestion = 10,
}

impl Outcome {
    /// Number of outcomes.
    pub const COUNT: usize = 11;

    /// All outcomes, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Ipv4InIpv4,
        Self::Ipv6InIpv4,
        Self::Ipv4InIpv6,
        Self::Ipv6InIpv6,
        Self::GueOverIpv4,
        Self::GueOverIpv6,
        Self::PassOther,
        Self::PassAddress,
        Self::PassMalformed,
        Self::PassFragment,
        Self::DropCongestion,
    ];

    /// Returns the outcome's name, as counters and listings show it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ipv4InIpv4 => "ipv4_in_ipv4",
            Self::Ipv6InIpv4 => "ipv6_in_ipv4",
            Self::Ipv4InIpv6 => "ipv4_in_ipv6",
            Self::Ipv6InIpv6 => "ipv6_in_ipv6",
            Self::GueOverIpv4 => "gue_over_ipv4",
            Self::GueOverIpv6 => "gue_over_ipv6",
            Self::PassOther => "pass_other",
            Self::PassAddress => "pass_address",
            Self::PassMalformed => "pass_malformed",
            Self::PassFragment => "pass_fragment",
            Self::DropCongestion => "drop_congestion",
        }
    }
}

const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;

/// Returns the inner type of service or traffic class after decapsulation, or nothing if the
/// packet must be dropped: RFC 6040 §4.2, figure 4. DSCP is the inner's.
#[inline(always)]
pub const fn inner_tos(outer: u8, inner: u8) -> Option<u8> {
    match (outer & 0b11, inner & 0b11) {
        (CE, NOT_ECT) => None,
        (CE, _) => Some(inner | CE),
        (ECT_1, ECT_0) => Some(inner & !0b11 | ECT_1),
        _ => Some(inner),
    }
}

/// Returns an IPv4 header's checksum after its first word changed (RFC 1624 §3, equation 3). All
/// in memory order.
#[inline(always)]
pub const fn updated_checksum(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = !checksum as u64 + !old as u64 + new as u64;
    // The sum of three words folds in two steps.
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn congestion_survives_decapsulation_as_rfc_6040_says() {
        // (outer, inner) -> inner afterwards, figure 4 of the RFC line by line.
        let table = [
            (NOT_ECT, NOT_ECT, Some(NOT_ECT)),
            (ECT_0, NOT_ECT, Some(NOT_ECT)),
            (ECT_1, NOT_ECT, Some(NOT_ECT)),
            (CE, NOT_ECT, None),
            (NOT_ECT, ECT_0, Some(ECT_0)),
            (ECT_0, ECT_0, Some(ECT_0)),
            (ECT_1, ECT_0, Some(ECT_1)),
            (CE, ECT_0, Some(CE)),
            (NOT_ECT, ECT_1, Some(ECT_1)),
            (ECT_0, ECT_1, Some(ECT_1)),
            (ECT_1, ECT_1, Some(ECT_1)),
            (CE, ECT_1, Some(CE)),
            (NOT_ECT, CE, Some(CE)),
            (ECT_0, CE, Some(CE)),
            (ECT_1, CE, Some(CE)),
            (CE, CE, Some(CE)),
        ];
        for (outer, inner, expected) in table {
            for dscp in [0, 46 << 2] {
                let expected = expected.map(|ecn| dscp | ecn);
                assert_eq!(inner_tos(outer | 0b1010_1000, inner | dscp), expected);
            }
        }
    }

    proptest! {
        #[test]
        fn an_updated_checksum_is_the_one_computed_anew(
            tos: u8, other: u8, payload in 0_u16..2000, source: [u8; 4], id: u16,
        ) {
            let mut header = etherparse::Ipv4Header::new(
                payload, 64, etherparse::IpNumber(6), source, [198, 18, 0, 1],
            ).unwrap();
            header.identification = id;
            let set = |header: &mut etherparse::Ipv4Header, tos: u8| {
                header.dscp = (tos >> 2).try_into().unwrap();
                header.ecn = (tos & 3).try_into().unwrap();
                header.header_checksum = header.calc_header_checksum();
            };
            set(&mut header, tos);
            let old = header.header_checksum.to_be();
            set(&mut header, other);
            let word = |tos: u8| u16::from_ne_bytes([0x45, tos]);
            prop_assert_eq!(updated_checksum(old, word(tos), word(other)), header.header_checksum.to_be());
        }
    }
}
