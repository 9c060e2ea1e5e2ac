//! The questions that the model asks, by name. Each answer is noted, which gives coverage as AFL has
//! it (which answer followed which), and any one can be left out, which plants a fault.

use std::collections::BTreeSet;

macro_rules! clauses {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A question of the model.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Clause {
            $($(#[$doc])* $name,)*
        }

        impl Clause {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

clauses! {
    /// Is there a VLAN tag?
    Tagged,
    /// Is the tag cut off?
    TagCutOff,
    /// Is there another one?
    TaggedTwice,
    /// Is that cut off?
    SecondTagCutOff,
    /// Is it IPv4 by its Ethernet type?
    Ipv4,
    /// Is it IPv6 by its Ethernet type?
    Ipv6,
    /// Does an IPv4 header contradict itself in its version?
    Ipv4Version,
    /// Is an IPv4 header's length below 20 bytes?
    Ipv4HeaderShort,
    /// Is an IPv4 packet's length below its header's?
    Ipv4LenShort,
    /// Is an IPv4 packet longer than its frame?
    Ipv4LenLong,
    /// Is it a later fragment?
    Ipv4FragmentOffset,
    /// One that would write over a TCP header's flags?
    OverFlags,
    /// Is it the first fragment?
    Ipv4MoreFragments,
    /// Of TCP or UDP?
    FragmentPorts,
    /// Is it ICMP?
    Icmpv4,
    /// Does an IPv6 header contradict its Ethernet type?
    Ipv6Version,
    /// Is an IPv6 packet longer than its frame?
    Ipv6LenLong,
    /// Is there a hop-by-hop or destination options header?
    Extension,
    /// Is it cut off?
    ExtensionCutOff,
    /// Is there a fragment header?
    Ipv6Fragment,
    /// Is it cut off?
    FragmentCutOff,
    /// Is it a later fragment's?
    Ipv6Later,
    /// Is it the first one's?
    Ipv6First,
    /// Of ICMPv6?
    Icmpv6Fragment,
    /// Is it ICMPv6?
    Icmpv6,
    /// Is it TCP?
    Tcp,
    /// Is the TCP header cut off?
    TcpCutOff,
    /// Is it UDP?
    Udp,
    /// Is the UDP header cut off?
    UdpCutOff,
    /// SYN without ACK, RST or FIN?
    Opening,
    /// FIN or RST?
    Closing,
    /// Does the datagram have a checksum?
    UdpChecksum,
    /// Is the datagram as long as its packet?
    UdpLenAgrees,
    /// Is the ICMP header cut off?
    IcmpCutOff,
    /// Is it an ICMP error?
    IcmpError,
    /// Is the quoted IP header cut off?
    QuoteCutOff,
    /// Is the quoted version the error's own?
    QuoteVersion,
    /// Is the quoted header's length below 20 bytes?
    QuoteHeaderShort,
    /// Is a later fragment quoted?
    QuoteFragment,
    /// Is TCP or UDP quoted?
    QuoteTransport,
    /// Did the quoted packet come from the address that the error goes to?
    QuoteOurs,
    /// Are the quoted ports cut off?
    QuotePortsCutOff,
    /// Is there a service on exactly this port?
    ExactPort,
    /// Is there one on any port of the address?
    AnyPort,
    /// Does the row say that the flow tables must be asked?
    RowAsks,
    /// Is there an entry of a confirmed flow?
    HasConfirmed,
    /// Is there an entry of a kept flow?
    HasKept,
    /// Is there an entry of a half-open flow?
    HasHalfOpen,
    /// Does a backend exist?
    BackendExists,
    /// Does it live?
    BackendAlive,
    /// In the entry's generation?
    SameGeneration,
    /// Is it the opening packet that the entry is of?
    SameOpening,
    /// Was the entry's flow closed?
    EntryClosed,
    /// Does its backend take new flows?
    BackendAccepts,
    /// Was it opened anew?
    Reopened,
    /// Did the second packet come already?
    HalfConfirmed,
    /// Does this packet follow one of the half-open entry's opening packets?
    Follows,
    /// The last one of the two?
    FollowsLast,
    /// Does it go on where the established flow is?
    GoesOn,
    /// Is it close to what the entry saw last?
    Near,
    /// Is it time to write the entry's time anew?
    Refresh,
    /// Has the row's owner the entry?
    OwnerHasEntry,
    /// Is the owner another than who holds untracked flows?
    RowMoved,
    /// Does that one live?
    UntrackedAlive,
    /// Has the table room?
    Room,
    /// Is the row's backend none?
    NoBackend,
    /// Is the backend's next hop unknown?
    Unreachable,
    /// Does the packet go back out of the interface that it came by?
    SentBack,
    /// Is the other interface one to redirect to?
    Redirectable,
    /// Is the output tagged?
    OutTagged,
    /// Is it tagged by a provider?
    OutTaggedAround,
    /// Is there an outer UDP header?
    OuterUdp,
    /// Does an outer checksum follow from the packet?
    OuterChecksum,
    /// Has the outer source address bits of the flow's hash?
    SourceEntropy,
    /// Does the packet inside say "don't fragment"?
    DontFragment,
}

/// Number of edges that are told apart.
const EDGES: usize = 1 << 15;

/// The way of packets through the model: what was asked, and what the answers were.
#[derive(Clone, Debug)]
pub struct Walk {
    edges: Vec<u64>,
    last: u16,
    path: u64,
    paths: BTreeSet<u64>,
    left_out: Option<Clause>,
}

impl Default for Walk {
    fn default() -> Self {
        Self {
            edges: vec![0; EDGES / 64],
            last: 0,
            path: 0,
            paths: BTreeSet::new(),
            left_out: None,
        }
    }
}

impl Walk {
    /// Returns a walk on which a question is always answered with no.
    #[must_use]
    pub fn without(clause: Clause) -> Self {
        Self {
            left_out: Some(clause),
            ..Self::default()
        }
    }

    /// Begins with another packet.
    pub fn begin(&mut self) {
        (self.last, self.path) = (0, 0);
    }

    /// Ends with a packet.
    pub fn end(&mut self) {
        self.paths.insert(self.path);
    }

    /// Notes a question and its answer. Returns the answer.
    pub fn at(&mut self, clause: Clause, answer: bool) -> bool {
        let answer = answer && self.left_out != Some(clause);
        self.step(clause as u16 * 2 + u16::from(answer));
        answer
    }

    /// Notes something that has more than two values.
    pub fn note(&mut self, value: u8) {
        self.step(0x100 + u16::from(value));
    }

    fn step(&mut self, place: u16) {
        // The order of two steps matters: the earlier one is shifted, as in AFL.
        let edge = usize::from((self.last >> 1) ^ place.wrapping_mul(0x9e37)) % EDGES;
        if let Some(word) = self.edges.get_mut(edge / 64) {
            *word |= 1 << (edge % 64);
        }
        self.last = place.wrapping_mul(0x9e37);
        self.path = (self.path ^ u64::from(place)).wrapping_mul(0x0100_0000_01b3);
    }

    /// Returns the edges that were taken.
    #[must_use]
    pub fn edges(&self) -> &[u64] {
        &self.edges
    }

    /// Returns the ways that whole packets took.
    #[must_use]
    pub fn paths(&self) -> &BTreeSet<u64> {
        &self.paths
    }
}
