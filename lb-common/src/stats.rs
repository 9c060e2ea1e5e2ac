//! Counters. All are per CPU, and are never reset while their map lives.

/// Counters of a backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct BackendStats {
    /// Packets sent to the backend.
    pub packets: u64,
    /// Their bytes, as they came in: from the Ethernet header on, without the frame check sequence.
    pub bytes: u64,
    /// Opening packets among them (TCP SYN). Plain UDP has none.
    pub new_flows: u64,
}

/// Counters of a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ServiceStats {
    /// Packets sent to its backends.
    pub packets: u64,
    /// Their bytes, as for a backend.
    pub bytes: u64,
    /// Opening packets among them.
    pub new_flows: u64,
    /// Packets dropped: no backend could take them, or the guard did not let them in.
    pub dropped: u64,
    /// Flow table entries refused: a table was full, or the rate of half-open entries was reached.
    pub refused: u64,
    /// When the last entry was refused: the kernel's 64-bit jiffies; 0 if never.
    pub refused_at: u64,
}

/// Why a packet left the program.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Sent out of the interface that it came in by.
    Sent = 0,
    /// Redirected to another interface.
    Redirected = 1,
    /// Passed: not IPv4 nor IPv6 (ARP and the like), or with more than two VLAN tags.
    PassNotIp = 2,
    /// Passed: the headers are cut off or contradict themselves.
    PassMalformed = 3,
    /// Passed: neither TCP nor UDP nor ICMP.
    PassProtocol = 4,
    /// Passed: no service has this address, port and protocol.
    PassNoService = 5,
    /// Passed: a fragment of neither TCP nor UDP, or a later one of which no first one was seen.
    PassFragment = 6,
    /// Passed: ICMP or ICMPv6, neither an error about a flow of a service nor an echo request that is
    /// answered.
    PassIcmp = 7,
    /// Dropped: the service has no backend.
    DropNoBackend = 8,
    /// Dropped: the backend's next hop is not known.
    DropUnreachable = 9,
    /// Dropped: the driver leaves no room in front of the packet for the outer headers.
    DropNoRoom = 10,
    /// An ICMP error about a flow of a service; counted beside what became of it.
    IcmpError = 11,
    /// Answered: an ICMP or ICMPv6 echo request to a service's address.
    Echo = 12,
    /// Dropped: an echo request over the rate at which they are answered.
    DropEchoRate = 13,
    /// Answered: a packet that is too long for the way to its backend. Its sender was told (ICMP
    /// "fragmentation needed", ICMPv6 "packet too big").
    TooBig = 14,
    /// Dropped: such a packet, over the rate at which senders are told.
    DropTooBigRate = 15,
    /// Dropped: such a packet whose sender can't be told: it is an ICMP error itself, or not from one
    /// host, or the way is narrower than hosts believe.
    DropTooLong = 16,
    /// A later fragment that followed the first one; counted beside what became of it.
    Fragment = 17,
    /// Dropped: a later fragment to a service's address of which no first one was seen, as the operator
    /// wants it.
    DropFragment = 18,
    /// A VM's answer, or its ICMP error, translated and sent.
    Answer = 19,
    /// A VM's answer, translated and passed: the host knows the way, or must look for it.
    AnswerByHost = 20,
    /// Passed untouched though it comes from a VM's translated address and port: it is for this
    /// host, or for nobody that can be reached, or the host must answer (time to live, size).
    PassFromVm = 21,
    /// Passed untouched: a VM's answer, but this host forwards nothing.
    PassForwardingOff = 22,
    /// Dropped: a prefix of the global list or the service's keeps the source out.
    DropDenied = 23,
    /// Dropped: the global list or the service's allows others than the source.
    DropNotAllowed = 24,
    /// Dropped: the source sends more packets than it may.
    DropSourcePackets = 25,
    /// Dropped: the source opens more flows than it may.
    DropSourceFlows = 26,
    /// Dropped: the service gets more packets than it may.
    DropPackets = 27,
    /// Dropped: more flows are opened to the service than may be.
    DropFlows = 28,
}

impl Reason {
    /// Number of reasons.
    pub const COUNT: usize = 29;

    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Sent,
        Self::Redirected,
        Self::PassNotIp,
        Self::PassMalformed,
        Self::PassProtocol,
        Self::PassNoService,
        Self::PassFragment,
        Self::PassIcmp,
        Self::DropNoBackend,
        Self::DropUnreachable,
        Self::DropNoRoom,
        Self::IcmpError,
        Self::Echo,
        Self::DropEchoRate,
        Self::TooBig,
        Self::DropTooBigRate,
        Self::DropTooLong,
        Self::Fragment,
        Self::DropFragment,
        Self::Answer,
        Self::AnswerByHost,
        Self::PassFromVm,
        Self::PassForwardingOff,
        Self::DropDenied,
        Self::DropNotAllowed,
        Self::DropSourcePackets,
        Self::DropSourceFlows,
        Self::DropPackets,
        Self::DropFlows,
    ];

    /// Returns the reason's name, as counters and listings show it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Redirected => "redirected",
            Self::PassNotIp => "pass_not_ip",
            Self::PassMalformed => "pass_malformed",
            Self::PassProtocol => "pass_protocol",
            Self::PassNoService => "pass_no_service",
            Self::PassFragment => "pass_fragment",
            Self::PassIcmp => "pass_icmp",
            Self::DropNoBackend => "drop_no_backend",
            Self::DropUnreachable => "drop_unreachable",
            Self::DropNoRoom => "drop_no_room",
            Self::IcmpError => "icmp_error",
            Self::Echo => "echo",
            Self::DropEchoRate => "drop_echo_rate",
            Self::TooBig => "too_big",
            Self::DropTooBigRate => "drop_too_big_rate",
            Self::DropTooLong => "drop_too_long",
            Self::Fragment => "fragment",
            Self::DropFragment => "drop_fragment",
            Self::Answer => "answer",
            Self::AnswerByHost => "answer_by_host",
            Self::PassFromVm => "pass_from_vm",
            Self::PassForwardingOff => "pass_forwarding_off",
            Self::DropDenied => "drop_denied",
            Self::DropNotAllowed => "drop_not_allowed",
            Self::DropSourcePackets => "drop_source_packets",
            Self::DropSourceFlows => "drop_source_flows",
            Self::DropPackets => "drop_packets",
            Self::DropFlows => "drop_flows",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_numbered_as_listed_and_named_once() {
        let mut names = Vec::new();
        for (number, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number);
            assert!(!names.contains(&reason.as_str()));
            names.push(reason.as_str());
        }
    }
}
