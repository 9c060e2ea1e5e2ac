/// What the program itself answers by ICMP and ICMPv6, for all services alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// Whether echo requests to virtual addresses are answered; else they pass to the host.
    pub echo: bool,
    /// At most so many of them a second, by each CPU: 1 ..= 1,000,000. The others are dropped.
    pub echo_rate: u32,
    /// At most so many senders a second are told, by each CPU, that their packets are too long for the
    /// way to a backend: 0 ..= 1,000,000. The packets are dropped in any case.
    pub too_big_rate: u32,
}

impl Default for Icmp {
    fn default() -> Self {
        Self {
            echo: true,
            echo_rate: 1000,
            too_big_rate: 1000,
        }
    }
}
