//! What the API answers, besides [`crate::spec`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::spec::NumberOrText;

/// How the daemon is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The configuration file.
    pub config: String,
    /// The interfaces.
    pub interfaces: Vec<InterfaceView>,
    /// What is answered by ICMP.
    pub icmp: IcmpView,
    /// How fragments are handled.
    pub fragments: FragmentsView,
    /// The services.
    pub services: Vec<ServiceView>,
    /// The operator's own changes over the file.
    pub overrides: Vec<String>,
    /// Changes that have no effect at the moment, and why.
    pub ineffective: Vec<String>,
}

/// What the program itself answers by ICMP and ICMPv6.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IcmpView {
    /// Whether echo requests to services' addresses are answered; else they pass to the host.
    pub echo: bool,
    /// At most so many of them a second, by each CPU.
    pub echo_rate: u32,
    /// At most so many senders a second are told, by each CPU, that their packets are too long for
    /// the way to a backend.
    pub too_big_rate: u32,
}

/// How fragments are handled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FragmentsView {
    /// `pass` or `drop`: what becomes of later ones to services' addresses of which no first one was
    /// seen.
    pub unknown: String,
    /// How long after a first one others may follow it.
    pub timeout: String,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InterfaceView {
    /// Its name.
    pub name: String,
    /// The declared mode.
    pub mode: String,
    /// Whether the program is attached.
    pub attached: bool,
    /// The mode that it runs in, and why, as far as it is known.
    pub note: String,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceView {
    /// Its name.
    pub name: String,
    /// The virtual address.
    pub address: String,
    /// The port, or `"any"`.
    pub port: NumberOrText,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// How packets reach its backends.
    pub forward: String,
    /// `serving`; `waiting` for next hops; `fail-open`: no backend takes new flows, and the last
    /// owners keep them; `empty`: it has none.
    pub state: String,
    /// Rows of its ring.
    pub rows: u64,
    /// Rows that moved and have not settled yet.
    pub unsettled_rows: u64,
    /// Rows that ask the flow table.
    pub lookup_rows: u64,
    /// Packets sent to its backends.
    pub packets: u64,
    /// Their bytes, from the Ethernet header on, as they came in.
    pub bytes: u64,
    /// Opening packets among them (TCP SYN).
    pub new_flows: u64,
    /// Packets dropped: no backend could take them, or the guard did not let them in.
    pub dropped: u64,
    /// Flow table entries refused: a table was full, or the rate of half-open entries was reached.
    pub refused: u64,
    /// Its backends.
    pub backends: Vec<BackendView>,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackendView {
    /// Its name.
    pub name: String,
    /// Its address; nothing for one that is leaving.
    pub address: Option<String>,
    /// Where it listens, if not on the service's port.
    pub port: Option<u16>,
    /// Its weight.
    pub weight: u16,
    /// `up`, `idle`, `draining`, `unresolved`, `suspect`, `dead` or `leaving`.
    pub state: String,
    /// Why, where that isn't plain.
    pub why: Option<String>,
    /// Rows that it owns: its share of new flows.
    pub rows: u64,
    /// Its entries in the flow table, as of the last sweep.
    pub tracked_flows: u64,
    /// Packets sent to it.
    pub packets: u64,
    /// Their bytes, from the Ethernet header on, as they came in.
    pub bytes: u64,
    /// Opening packets among them (TCP SYN).
    pub new_flows: u64,
}

/// Counters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    /// Packets that left the program without being sent to a backend, by reason: also those that it
    /// answered itself, and what packets that were sent are beside.
    pub reasons: BTreeMap<String, u64>,
    /// The services with theirs.
    pub services: Vec<ServiceView>,
}

/// What changes of a backend. Fields that are not there stay as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackendPatch {
    /// Its weight, 0 to 65,535.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<i64>,
    /// Whether it is drained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<bool>,
}

/// How a backend is removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct RemoveBackend {
    /// Give its flows up at once, instead of letting them end.
    #[serde(default)]
    pub drop_flows: bool,
}

/// A configuration file to compare with what is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiffRequest {
    /// Its content.
    pub toml: String,
    /// Its name, for errors.
    pub file: String,
}

/// What a configuration would change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Diff {
    /// The changes, a line each.
    pub changes: Vec<String>,
    /// Rows that would change their owner, by service.
    pub moves: Vec<Moves>,
}

/// Rows of a service that would change their owner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Moves {
    /// The service.
    pub service: String,
    /// How many.
    pub moved_rows: u64,
    /// Of how many.
    pub rows: u64,
}

/// A packet to explain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// The client's address and port, as `198.19.0.1:40000` or `[2001:db8::1]:40000`.
    pub source: String,
    /// The service's address and port.
    pub destination: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Whether it opens a flow (TCP SYN); else it belongs to one that is open.
    #[serde(default)]
    pub syn: bool,
}

/// What the loaded program does with a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explained {
    /// `pass`, `drop`, `tx` or `redirect`.
    pub verdict: String,
    /// The reason under which it would be counted.
    pub reason: String,
    /// The service.
    pub service: Option<String>,
    /// The backend.
    pub backend: Option<String>,
    /// The decisions, one a line.
    pub steps: Vec<String>,
    /// The frame as it would leave, in hexadecimal digits.
    pub frame: String,
}

/// The lists of sources in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuardView {
    /// The lists.
    pub lists: Vec<ListView>,
    /// The rates.
    pub rates: Vec<RateView>,
}

/// A list of sources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListView {
    /// The service; nothing for a list that holds for all.
    pub service: Option<String>,
    /// `allow` or `deny`.
    pub list: String,
    /// Prefixes of IPv4.
    pub ipv4: u64,
    /// Prefixes of IPv6.
    pub ipv6: u64,
    /// Whether it was loaded over the configuration file's.
    pub loaded: bool,
}

/// What a service's packets are limited to, on each CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RateView {
    /// The service.
    pub service: String,
    /// `source_packets`, `source_new_flows`, `packets`, `new_flows` or `half_open`.
    pub rate: String,
    /// How many in a second.
    pub per_second: u32,
    /// How many at once.
    pub burst: u32,
}

/// A source that may be let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GuardTest {
    /// Its address.
    pub source: String,
}

/// Whether a source is let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuardTested {
    /// The services of its family.
    pub services: Vec<SourceView>,
}

/// Whether a source is let in to a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SourceView {
    /// The service.
    pub service: String,
    /// Whether it is let in.
    pub let_in: bool,
    /// Why.
    pub why: String,
}

/// A list of sources to load over the configuration file's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ListLoad {
    /// The service; without it the list holds for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// `allow` or `deny`.
    pub list: String,
    /// The prefixes, one a line; `#` begins a remark.
    pub text: String,
    /// What errors call it.
    pub file: String,
}

/// A loaded list of sources to forget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ListReset {
    /// The service; without it the list that holds for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// `allow` or `deny`.
    pub list: String,
}

/// What the maps hold against what they should.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Audit {
    /// How many entries were compared.
    pub entries: u64,
    /// What differs.
    pub differences: Vec<String>,
}

/// What a request did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Done {
    /// It, in words.
    pub done: Vec<String>,
}

/// Why a request was refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Refusal {
    /// The reasons: field, value, and what is allowed.
    pub errors: Vec<String>,
}
