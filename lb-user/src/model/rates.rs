/// How often something may happen, on each CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// How often in a second. Range 1 ..= 10,000,000.
    pub per_second: u32,
    /// How often at once. Range 1 ..= 10,000,000.
    pub burst: u32,
}

/// What a service's packets are limited to; nothing for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Packets of a source: of an IPv4 address, or of an IPv6 /64.
    pub source_packets: Option<RateLimit>,
    /// Opening packets of a source.
    pub source_new_flows: Option<RateLimit>,
    /// Packets.
    pub packets: Option<RateLimit>,
    /// Opening packets.
    pub new_flows: Option<RateLimit>,
    /// Opening packets on rows in transition that may make a half-open entry.
    pub half_open: Option<RateLimit>,
}

impl RateLimits {
    /// Returns all limits with their names.
    pub const fn all(&self) -> [(&'static str, Option<RateLimit>); 5] {
        [
            ("source_packets", self.source_packets),
            ("source_new_flows", self.source_new_flows),
            ("packets", self.packets),
            ("new_flows", self.new_flows),
            ("half_open", self.half_open),
        ]
    }

    /// Returns whether there is a limit of each source.
    pub const fn of_sources(&self) -> bool {
        self.source_packets.is_some() || self.source_new_flows.is_some()
    }

    /// Returns whether there is a limit of all packets together.
    pub const fn of_service(&self) -> bool {
        self.packets.is_some() || self.new_flows.is_some()
    }
}
