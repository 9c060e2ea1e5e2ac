//! Loading the programs onto new maps or onto those that an earlier daemon pinned.

use std::path::PathBuf;

use aya::maps::{Array, MapData};
use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader};
use lb_common::{ABI_VERSION, hash::HashKey, map_names as names};

use super::MapError;
use super::kernel::Kernel;
use super::nat;
use super::object::OBJECT;
use super::pins::{MAPS, PinError, Pins};
use crate::model::Limits;

/// With what the programs are loaded.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where maps and links are pinned.
    pub pin_dir: PathBuf,
    /// The sizes of the maps.
    pub limits: Limits,
    /// The installation's secret.
    pub hash_key: HashKey,
}

/// Why the data plane could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The pin directory.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The pinned maps are of another version.
    #[error(
        "the maps pinned in {dir} have ABI version {found}, this weir has {ABI_VERSION}: run the weir that made them, or remove them by `weir detach --all` (traffic then passes to the host until `weir run`)"
    )]
    Abi {
        /// The pin directory.
        dir: PathBuf,
        /// The version found.
        found: u32,
    },
    /// The pinned maps were filled with another secret.
    #[error(
        "the maps pinned in {dir} belong to another secret than the state directory's: use the state directory that they were made with, or remove them by `weir detach --all`"
    )]
    Secret {
        /// The pin directory.
        dir: PathBuf,
    },
    /// The pinned maps have another size.
    #[error(
        "limits: the pinned map {map} has {found} entries, the configuration says {wanted}: sizes are fixed while the maps live; to change them, run `weir detach --all` first"
    )]
    Limits {
        /// The map.
        map: &'static str,
        /// Its size.
        found: u32,
        /// The configured size.
        wanted: u32,
    },
    /// The kernel refused a map or a program.
    #[error("loading the XDP programs")]
    Load(#[source] Box<EbpfError>),
    /// The verifier refused a program.
    #[error("loading the XDP program {name}")]
    Program {
        /// The program.
        name: &'static str,
        /// What the verifier said.
        #[source]
        source: Box<ProgramError>,
    },
    /// The program's log lines can't be read.
    #[cfg(feature = "log")]
    #[error("reading the program's log lines")]
    Log(#[source] aya_log::Error),
    /// A map could not be used.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The object lacks something: it does not belong to this binary.
    #[error("the embedded BPF object has no {0}")]
    Missing(&'static str),
}

/// The entries of the ABI map.
const ABI_ENTRIES: u32 = 3;

/// Loads the programs. Pinned maps are taken over as they are, else new ones are pinned.
pub fn load(settings: &Settings) -> Result<Kernel, LoadError> {
    let pins = Pins::new(&settings.pin_dir);
    if !pins.exist() {
        pins.check()?;
    }
    pins.prepare()?;
    let sizes = sizes(&settings.limits);
    let adopted = match pinned_version(&pins)? {
        Some(UNFINISHED) | None if pins.links()?.is_empty() => {
            // A daemon may have died while it made the maps: nothing was attached to them.
            pins.remove_all()?;
            pins.prepare()?;
            false
        }
        found => {
            check_pinned(&pins, settings, &sizes, found.unwrap_or(UNFINISHED))?;
            true
        }
    };

    let mut loader = EbpfLoader::new();
    loader.override_global("HASH_KEY", &settings.hash_key, true);
    loader.override_global("SOURCE_PLACES", &settings.limits.guard_sources, true);
    for (name, entries) in &sizes {
        loader.map_max_entries(name, *entries);
    }
    for name in MAPS {
        loader.map_pin_path(name, pins.map(name));
    }
    let loaded = loader
        .load(OBJECT)
        .map_err(|error| LoadError::Load(Box::new(error)));
    let result = loaded.and_then(|ebpf| finish(ebpf, &pins, settings, adopted));
    if result.is_err() && !adopted {
        // Nothing was there before; leave nothing behind.
        let _ = pins.remove_all();
    }
    result
}

fn finish(
    mut ebpf: Ebpf,
    pins: &Pins,
    settings: &Settings,
    adopted: bool,
) -> Result<Kernel, LoadError> {
    if !adopted {
        let mut abi = abi_map(pins)?;
        for (index, word) in abi_words(&settings.hash_key).into_iter().enumerate().rev() {
            abi.set(index as u32, word, 0)
                .map_err(|source| MapError::Kernel {
                    map: names::ABI,
                    source,
                })?;
        }
    }
    for name in ["weir", "weir_explain", "weir_clock"] {
        let program = ebpf.program_mut(name).ok_or(LoadError::Missing(name))?;
        let program: &mut Xdp = program.try_into().map_err(|source| LoadError::Program {
            name,
            source: Box::new(source),
        })?;
        program.load().map_err(|source| LoadError::Program {
            name,
            source: Box::new(source),
        })?;
    }
    #[cfg(feature = "log")]
    super::log::start(&mut ebpf).map_err(LoadError::Log)?;
    Kernel::new(ebpf, pins.clone(), settings.limits, adopted)
}

/// Returns the maps whose size the operator chooses.
fn sizes(limits: &Limits) -> Vec<(&'static str, u32)> {
    // A service that changes its VIP has two of them for a moment.
    let services = limits.services.saturating_add(1);
    // Slot 0 is no backend.
    let backends = limits.backends.saturating_add(1);
    vec![
        (names::ABI, ABI_ENTRIES),
        (names::SERVICES_V4, services),
        (names::SERVICES_V6, services),
        (names::VIPS_V4, services),
        (names::VIPS_V6, services),
        (names::SERVICE_STATS, limits.services.saturating_mul(2)),
        (names::RING, limits.rows),
        (names::BACKENDS, backends),
        (names::BACKEND_STATS, backends),
        (names::NAT_SOURCES_V4, nat::capacity(limits)),
        (names::NAT_SOURCES_V6, nat::capacity(limits)),
        (names::FLOWS_V4[0], limits.half_open_flows),
        (names::FLOWS_V6[0], limits.half_open_flows),
        (names::FLOWS_V4[1], limits.confirmed_flows),
        (names::FLOWS_V6[1], limits.confirmed_flows),
        (names::FLOWS_V4[2], limits.kept_flows),
        (names::FLOWS_V6[2], limits.kept_flows),
        (names::FRAGMENTS_V4, limits.fragments),
        (names::FRAGMENTS_V6, limits.fragments),
        (names::RATES, limits.services.saturating_mul(2)),
        (names::SERVICE_BUCKETS, limits.services.saturating_mul(2)),
        (
            names::SOURCE_BUCKETS,
            limits.guard_sources.saturating_mul(2),
        ),
        (names::PREFIXES_V4, limits.guard_prefixes),
        (names::PREFIXES_V6, limits.guard_prefixes),
    ]
}

/// The version in maps that were pinned but not yet filled. It is written last.
const UNFINISHED: u32 = 0;

fn pinned_version(pins: &Pins) -> Result<Option<u32>, LoadError> {
    if !pins.exist() {
        return Ok(None);
    }
    let version = abi_map(pins)?
        .get(&0, 0)
        .map_err(|source| MapError::Kernel {
            map: names::ABI,
            source,
        })?;
    Ok(Some(version))
}

fn check_pinned(
    pins: &Pins,
    settings: &Settings,
    sizes: &[(&'static str, u32)],
    found: u32,
) -> Result<(), LoadError> {
    if found != ABI_VERSION {
        return Err(LoadError::Abi {
            dir: pins.dir().into(),
            found,
        });
    }
    let abi = abi_map(pins)?;
    let read = |index| {
        abi.get(&index, 0).map_err(|source| MapError::Kernel {
            map: names::ABI,
            source,
        })
    };
    let [_, low, high] = abi_words(&settings.hash_key);
    if (read(1)?, read(2)?) != (low, high) {
        return Err(LoadError::Secret {
            dir: pins.dir().into(),
        });
    }
    for &(map, wanted) in sizes {
        let data =
            MapData::from_pin(pins.map(map)).map_err(|source| MapError::Kernel { map, source })?;
        let info = data
            .info()
            .map_err(|source| MapError::Kernel { map, source })?;
        if info.max_entries() != wanted {
            return Err(LoadError::Limits {
                map,
                found: info.max_entries(),
                wanted,
            });
        }
    }
    Ok(())
}

fn abi_map(pins: &Pins) -> Result<Array<MapData, u32>, LoadError> {
    let map = MapData::from_pin(pins.map(names::ABI))
        .and_then(|data| Array::try_from(aya::maps::Map::Array(data)))
        .map_err(|source| MapError::Kernel {
            map: names::ABI,
            source,
        })?;
    Ok(map)
}

/// The version, and a fingerprint of the secret by which another one is noticed.
fn abi_words(key: &HashKey) -> [u32; ABI_ENTRIES as usize] {
    let fingerprint = lb_common::hash::words4(key, &[0; 4]);
    [ABI_VERSION, fingerprint as u32, (fingerprint >> 32) as u32]
}
