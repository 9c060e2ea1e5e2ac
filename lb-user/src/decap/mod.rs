//! The other end of the tunnels: unwraps IPIP and GUE packets addressed to this host, for VMs
//! without tunnel devices. Works without the daemon, and stays until it is detached.

mod place;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::Path;

use aya::maps::{Array, HashMap, MapData, MapError as AyaError, PerCpuArray};
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};
use lb_common::decap::{MAX_ADDRESSES, Outcome, map_names as names};

use crate::dataplane::{
    AttachError, Attached, DECAP_OBJECT, LoadError, MapError, PinError, Pins, attach_program,
};
use crate::model::AttachMode;
use crate::spec::SpecError;
use place::Place;

/// How an interface's tunnels are unwrapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// In which mode the program is attached.
    pub mode: AttachMode,
    /// Tunnel packets for these addresses are unwrapped; none: for the interface's own.
    pub addresses: Vec<IpAddr>,
    /// The UDP port of GUE.
    pub gue_port: NonZeroU16,
}

/// Why tunnels are not unwrapped.
#[derive(Debug, thiserror::Error)]
pub enum DecapError {
    /// No interface can have this name.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Name(Vec<SpecError>),
    /// The interface has no address.
    #[error("interface \"{0}\" has no address: give it one, or name addresses with --address")]
    NoAddress(String),
    /// Too many addresses.
    #[error("{0} addresses: allowed are {MAX_ADDRESSES} of each family")]
    TooMany(usize),
    /// It is attached already.
    #[error("interface \"{0}\" has it already: `weir decap detach {0}` first")]
    Attached(String),
    /// Pins.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// Loading.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Attaching.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The interface's addresses can't be read.
    #[error("reading the addresses of \"{interface}\"")]
    Addresses {
        /// The interface.
        interface: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Starts unwrapping on an interface. Everything is pinned below `dir`.
pub fn attach(
    dir: &Path,
    interface: &str,
    options: &Options,
) -> Result<(Attached, BTreeSet<IpAddr>), DecapError> {
    let place = Place::new(dir, interface)?;
    if nix::net::if_::if_nametoindex(interface).is_err() {
        return Err(AttachError::NoInterface(interface.to_owned()).into());
    }
    let addresses = addresses(interface, &options.addresses)?;
    if place.is_attached() {
        return Err(DecapError::Attached(interface.to_owned()));
    }
    // What a failed attempt left behind.
    place.clear()?;
    let pins = place.pins();
    pins.prepare()?;
    let result = load(pins, &addresses, options.gue_port).and_then(|mut program| {
        Ok(attach_program(
            weir_decap(&mut program)?,
            pins,
            interface,
            options.mode,
        )?)
    });
    match result {
        Ok(attached) => Ok((attached, addresses)),
        Err(error) => {
            let _ = place.clear();
            Err(error)
        }
    }
}

/// Stops unwrapping on an interface. Returns whether it was attached.
pub fn detach(dir: &Path, interface: &str) -> Result<bool, DecapError> {
    let place = Place::new(dir, interface)?;
    let attached = place.is_attached();
    place.clear()?;
    Ok(attached)
}

/// Returns the interfaces on which tunnels are unwrapped.
pub fn interfaces(dir: &Path) -> Result<Vec<String>, DecapError> {
    place::check(dir)?;
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.retain(|name| Place::new(dir, name).is_ok_and(|place| place.is_attached()));
    names.sort();
    Ok(names)
}

/// Returns an interface's counters.
pub fn counters(dir: &Path, interface: &str) -> Result<Vec<(Outcome, u64)>, DecapError> {
    let failed = |source| MapError::Kernel {
        map: names::OUTCOMES,
        source,
    };
    let pins = Pins::new(dir.join(interface));
    let data = MapData::from_pin(pins.map(names::OUTCOMES)).map_err(failed)?;
    let map = PerCpuArray::<_, u64>::try_from(aya::maps::Map::PerCpuArray(data)).map_err(failed)?;
    let mut counters = Vec::new();
    for outcome in Outcome::ALL {
        let values = map.get(&(outcome as u32), 0).map_err(failed)?;
        counters.push((outcome, values.iter().sum()));
    }
    Ok(counters)
}

fn addresses(interface: &str, wanted: &[IpAddr]) -> Result<BTreeSet<IpAddr>, DecapError> {
    let addresses: BTreeSet<IpAddr> = if wanted.is_empty() {
        own_addresses(interface)?
    } else {
        wanted.iter().copied().collect()
    };
    if addresses.is_empty() {
        return Err(DecapError::NoAddress(interface.to_owned()));
    }
    let v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
    let most = v4.max(addresses.len() - v4);
    if most > MAX_ADDRESSES as usize {
        return Err(DecapError::TooMany(most));
    }
    Ok(addresses)
}

fn own_addresses(interface: &str) -> Result<BTreeSet<IpAddr>, DecapError> {
    let all = nix::ifaddrs::getifaddrs().map_err(|errno| DecapError::Addresses {
        interface: interface.to_owned(),
        source: errno.into(),
    })?;
    let own = all.filter(|entry| entry.interface_name == interface);
    let addresses = own.filter_map(|entry| {
        let address = entry.address?;
        let v4 = address
            .as_sockaddr_in()
            .map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| {
            address
                .as_sockaddr_in6()
                .map(|address| IpAddr::V6(address.ip()))
        })
    });
    Ok(addresses.collect())
}

fn load(
    pins: &Pins,
    addresses: &BTreeSet<IpAddr>,
    gue_port: NonZeroU16,
) -> Result<Ebpf, DecapError> {
    let mut loader = EbpfLoader::new();
    loader.map_pin_path(names::OUTCOMES, pins.map(names::OUTCOMES));
    let mut ebpf = loader
        .load(DECAP_OBJECT)
        .map_err(|error| LoadError::Load(Box::new(error)))?;
    fn map<'a, T>(ebpf: &'a mut Ebpf, map: &'static str) -> Result<T, DecapError>
    where
        T: TryFrom<&'a mut aya::maps::Map, Error = AyaError>,
    {
        let found = ebpf.map_mut(map).ok_or(LoadError::Missing(map))?;
        Ok(T::try_from(found).map_err(|source| MapError::Kernel { map, source })?)
    }
    let failed = |map| move |source| MapError::Kernel { map, source };
    for address in addresses {
        match address {
            IpAddr::V4(address) => {
                let mut own: HashMap<_, [u8; 4], u8> = map(&mut ebpf, names::ADDRESSES_V4)?;
                own.insert(address.octets(), 1, 0)
                    .map_err(failed(names::ADDRESSES_V4))?;
            }
            IpAddr::V6(address) => {
                let mut own: HashMap<_, [u8; 16], u8> = map(&mut ebpf, names::ADDRESSES_V6)?;
                own.insert(address.octets(), 1, 0)
                    .map_err(failed(names::ADDRESSES_V6))?;
            }
        }
    }
    let mut port: Array<_, u32> = map(&mut ebpf, names::GUE_PORT)?;
    port.set(0, u32::from(gue_port.get()), 0)
        .map_err(failed(names::GUE_PORT))?;
    weir_decap(&mut ebpf)?
        .load()
        .map_err(|source| LoadError::Program {
            name: "weir_decap",
            source: Box::new(source),
        })?;
    Ok(ebpf)
}

/// The loaded program, for tests: it unwraps what is for `addresses`, and nothing is attached.
#[derive(Debug)]
pub struct Loaded(Ebpf);

impl Loaded {
    /// Loads the program with its counters pinned in `dir`.
    pub fn new(dir: &Path, addresses: &[IpAddr], gue_port: NonZeroU16) -> Result<Self, DecapError> {
        let pins = Pins::new(dir);
        pins.prepare()?;
        load(&pins, &addresses.iter().copied().collect(), gue_port).map(Self)
    }

    /// Runs it once on a frame. Returns the verdict and the frame as it is afterwards.
    pub fn run(&mut self, frame: &[u8]) -> io::Result<(u32, Vec<u8>)> {
        let program = weir_decap(&mut self.0).map_err(io::Error::other)?;
        crate::dataplane::test_run(program, frame, 0)
    }
}

fn weir_decap(ebpf: &mut Ebpf) -> Result<&mut Xdp, DecapError> {
    let name = "weir_decap";
    let program = ebpf.program_mut(name).ok_or(LoadError::Missing(name))?;
    let program = program.try_into().map_err(|source| LoadError::Program {
        name,
        source: Box::new(source),
    })?;
    Ok(program)
}
