use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::spec::{BackendSpec, NumberOrText, ServiceSpec};

/// A layer-4 load balancer for virtual machines, on XDP.
#[derive(Debug, Parser)]
#[command(name = "weir", version, arg_required_else_help = true)]
pub struct Arguments {
    /// The daemon's socket
    #[arg(
        long,
        global = true,
        env = "WEIR_SOCKET",
        default_value = "/run/weir/api.sock"
    )]
    pub socket: PathBuf,
    /// Print JSON, as the API answers it
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines, one object a line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon. SIGHUP reads the file again; SIGTERM stops the daemon, and the kernel goes
    /// on forwarding until `weir detach`
    Run {
        /// The configuration file
        #[arg(long, default_value = CONFIG)]
        config: PathBuf,
        /// How log lines look
        #[arg(long, value_enum, default_value = "text")]
        log_format: LogFormat,
        /// What is logged: error, warn, info, debug, or a filter as `lb_user::engine=debug`
        #[arg(long, env = "WEIR_LOG", default_value = "info")]
        log_level: String,
    },
    /// Check a configuration file; touches nothing and needs no daemon
    Check {
        /// The file
        file: PathBuf,
    },
    /// Make the daemon read its configuration file again; a bad file changes nothing
    Reload,
    /// Say what a configuration file would change, and how many rows it would move
    Diff {
        /// The file
        file: PathBuf,
    },
    /// Show interfaces, services, backends, and changes made over the file
    Status,
    /// Show counters of services, backends and reasons
    Stats {
        /// Show them again every second, with rates
        #[arg(long)]
        watch: bool,
        /// End after so many times
        #[arg(long, requires = "watch", value_name = "TIMES")]
        count: Option<u64>,
    },
    /// Say which backend takes a packet and why: runs the loaded program, and leaves no trace
    Explain {
        /// The client's address and port, as 198.19.0.1:40000 or [2001:db8::1]:40000
        source: String,
        /// The service's address and port
        destination: String,
        /// tcp or udp
        #[arg(long, default_value = "tcp")]
        protocol: String,
        /// The packet opens a flow (TCP SYN)
        #[arg(long)]
        syn: bool,
    },
    /// Compare the kernel's maps with what they should hold, entry by entry
    Audit,
    /// Attach the program to an interface
    Attach {
        /// The interface
        interface: String,
        /// native, generic, or auto: native if the driver can
        #[arg(long)]
        mode: Option<String>,
    },
    /// Detach the program from an interface; with --all, remove everything from the kernel
    Detach {
        /// The interface
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        interface: Option<String>,
        /// Everything: all links and all pinned maps. For when the daemon is stopped
        #[arg(long)]
        all: bool,
        /// With --all: the configuration file of the daemon, which says where its maps are
        /// [default: /etc/weir/weir.toml, or weir's own places if there is none]
        #[arg(long, requires = "all")]
        config: Option<PathBuf>,
        /// With --all: where the maps are pinned, if the file doesn't say
        #[arg(long, requires = "all")]
        pins: Option<PathBuf>,
    },
    /// Lists of sources that are let in or kept out
    #[command(subcommand)]
    Guard(GuardCommand),
    /// Services
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Backends of services
    #[command(subcommand)]
    Backend(BackendCommand),
    /// In a VM without tunnel devices: unwrap IPIP and GUE. Needs no daemon
    #[command(subcommand)]
    Decap(DecapCommand),
}

/// What to do with the unwrapping of tunnels.
#[derive(Debug, Subcommand)]
pub enum DecapCommand {
    /// Unwrap what comes in by an interface, addressed to this host
    Attach {
        /// The interface
        interface: String,
        /// native, generic, or auto: native if the driver can
        #[arg(long, default_value = "auto")]
        mode: String,
        /// Unwrap what is addressed to this [default: to the interface's own addresses]
        #[arg(long)]
        address: Vec<IpAddr>,
        /// The UDP port of GUE
        #[arg(long, default_value = "6080")]
        gue_port: NonZeroU16,
        /// Where it is pinned
        #[arg(long, default_value = DECAP_PINS)]
        pins: PathBuf,
    },
    /// Stop unwrapping
    Detach {
        /// The interface
        interface: String,
        /// Where it is pinned
        #[arg(long, default_value = DECAP_PINS)]
        pins: PathBuf,
    },
    /// Show what was unwrapped and what wasn't
    Status {
        /// Where it is pinned
        #[arg(long, default_value = DECAP_PINS)]
        pins: PathBuf,
    },
}

/// Where the configuration file is, if nobody says otherwise.
pub const CONFIG: &str = "/etc/weir/weir.toml";

const DECAP_PINS: &str = "/sys/fs/bpf/weir-decap";

/// What to do with lists of sources.
#[derive(Debug, Subcommand)]
pub enum GuardCommand {
    /// Show which lists are in force
    Show,
    /// Load a list from a file, in place of what the configuration says; packets see the old list
    /// or the new, whole. Survives a restart of the daemon
    Load {
        /// allow or deny
        list: String,
        /// The file: one prefix a line, '#' begins a remark
        file: PathBuf,
        /// The service [default: all]
        #[arg(long)]
        service: Option<String>,
    },
    /// Put the list of the configuration in force again
    Reset {
        /// allow or deny
        list: String,
        /// The service [default: all]
        #[arg(long)]
        service: Option<String>,
    },
    /// Say to which services a source is let in, and why
    Test {
        /// The source's address
        source: String,
    },
}

/// What to do with services.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// List the services
    List,
    /// Show a service with its backends
    Show {
        /// Its name
        service: String,
    },
    /// Add a service; backends follow by `weir backend add`
    Add(Box<ServiceArguments>),
    /// Remove a service
    Remove {
        /// Its name
        service: String,
    },
}

/// A new service.
#[derive(Debug, Args)]
pub struct ServiceArguments {
    /// Its name
    service: String,
    /// The virtual address
    address: String,
    /// The port, or "any"
    port: String,
    /// tcp or udp
    protocol: String,
    /// l2, ipip, gue, vxlan, geneve or nat
    #[arg(long, default_value = "l2")]
    forward: String,
    /// GUE's destination port [default: 6080]
    #[arg(long)]
    gue_port: Option<i64>,
    /// With vxlan and geneve: the overlay as in the file, as JSON: '{"vni": 7}'
    #[arg(long)]
    overlay: Option<String>,
    /// How long a flow may be silent and still be known [default: 15m for TCP, 30s for UDP]
    #[arg(long)]
    idle_timeout: Option<String>,
    /// A health check as in the file, as JSON: '{"type": "tcp", "interval": "1s"}'
    #[arg(long)]
    health: Option<String>,
}

impl ServiceArguments {
    /// Returns what is asked for.
    pub fn spec(self) -> anyhow::Result<ServiceSpec> {
        Ok(ServiceSpec {
            name: self.service,
            address: self.address,
            port: match self.port.parse() {
                Ok(port) => NumberOrText::Number(port),
                Err(_) => NumberOrText::Text(self.port),
            },
            protocol: self.protocol,
            forward: Some(self.forward),
            gue_port: self.gue_port,
            overlay: json("--overlay", self.overlay.as_deref())?,
            idle_timeout: self.idle_timeout,
            health: json("--health", self.health.as_deref())?,
            guard: None,
            backends: Vec::new(),
        })
    }
}

/// What to do with backends.
#[derive(Debug, Subcommand)]
pub enum BackendCommand {
    /// List the backends of a service
    List {
        /// The service
        service: String,
    },
    /// Add a backend
    Add(Box<BackendArguments>),
    /// Remove a backend; its flows stay until they end
    Remove {
        /// The service
        service: String,
        /// The backend
        backend: String,
        /// Give its flows up at once
        #[arg(long)]
        drop_flows: bool,
    },
    /// Set a backend's share of new flows; survives a restart of the daemon
    SetWeight {
        /// The service
        service: String,
        /// The backend
        backend: String,
        /// 0 to 65535, relative to the other backends
        #[arg(allow_negative_numbers = true)]
        weight: i64,
    },
    /// Send a backend no new flows; its own stay until they end
    Drain {
        /// The service
        service: String,
        /// The backend
        backend: String,
    },
    /// Send a drained backend new flows again
    Undrain {
        /// The service
        service: String,
        /// The backend
        backend: String,
    },
}

/// A new backend.
#[derive(Debug, Args)]
pub struct BackendArguments {
    /// The service
    pub service: String,
    /// Its name
    backend: String,
    /// The VM's address, or that of its end of the tunnel
    address: String,
    /// Its share of new flows, 0 to 65535 [default: 100]
    #[arg(long, allow_negative_numbers = true)]
    weight: Option<i64>,
    /// nat: where it listens [default: on the service's port]
    #[arg(long)]
    port: Option<i64>,
    /// l2, ipip, gue, vxlan, geneve or nat [default: the service's]
    #[arg(long)]
    forward: Option<String>,
    /// GUE's destination port [default: 6080]
    #[arg(long)]
    gue_port: Option<i64>,
    /// With vxlan and geneve: as in the file, as JSON: '{"mac": "52:54:00:12:34:56"}'
    #[arg(long)]
    overlay: Option<String>,
    /// The interface to send from [default: by the kernel's routes]
    #[arg(long)]
    interface: Option<String>,
    /// The Ethernet address to send to [default: by the kernel's neighbour table]
    #[arg(long)]
    mac: Option<String>,
}

impl BackendArguments {
    /// Returns what is asked for.
    pub fn spec(self) -> anyhow::Result<BackendSpec> {
        Ok(BackendSpec {
            name: self.backend,
            address: self.address,
            weight: self.weight,
            draining: None,
            port: self.port,
            forward: self.forward,
            gue_port: self.gue_port,
            overlay: json("--overlay", self.overlay.as_deref())?,
            interface: self.interface,
            mac: self.mac,
        })
    }
}

/// Reads an option's value as a part of the file.
fn json<T: serde::de::DeserializeOwned>(
    option: &'static str,
    text: Option<&str>,
) -> anyhow::Result<Option<T>> {
    let read = text.map(serde_json::from_str).transpose();
    read.context(option)
}
