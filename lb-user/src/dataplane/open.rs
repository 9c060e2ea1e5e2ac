//! Taking the loaded object's maps, each with its type.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, MapError as AyaError};
use lb_common::flow::FlowEntry;

use super::MapError;
use super::load::LoadError;
use super::mapped::Mapped;
use super::walk::Walk;

pub(super) fn take<M>(ebpf: &mut Ebpf, map: &'static str) -> Result<M, LoadError>
where
    M: TryFrom<Map, Error = AyaError>,
{
    let taken = ebpf.take_map(map).ok_or(LoadError::Missing(map))?;
    Ok(M::try_from(taken).map_err(|source| MapError::Kernel { map, source })?)
}

pub(super) fn walk<K: aya::Pod + bytemuck::Pod>(
    ebpf: &mut Ebpf,
    map: &'static str,
) -> Result<Walk<K>, LoadError> {
    let failed = |source| MapError::Kernel { map, source };
    match ebpf.map(map) {
        Some(typed @ Map::HashMap(data)) => {
            // The typed map checks the sizes of keys and values.
            HashMap::<&MapData, K, FlowEntry>::try_from(typed).map_err(failed)?;
            Ok(Walk::new(data).map_err(|error| failed(AyaError::IoError(error)))?)
        }
        _ => Err(LoadError::Missing(map)),
    }
}

/// Returns a descriptor of a prefix trie with keys `K` and words as values.
pub(super) fn trie<K: bytemuck::Pod>(
    ebpf: &mut Ebpf,
    map: &'static str,
) -> Result<OwnedFd, LoadError> {
    let failed = |source| MapError::Kernel { map, source };
    let Some(Map::LpmTrie(data)) = ebpf.map(map) else {
        return Err(LoadError::Missing(map));
    };
    let info = data.info().map_err(failed)?;
    if (info.key_size() as usize, info.value_size()) != (size_of::<K>(), 4) {
        return Err(LoadError::Missing(map));
    }
    let fd = data.fd().as_fd().try_clone_to_owned();
    Ok(fd.map_err(|error| failed(AyaError::IoError(error)))?)
}

pub(super) fn mapped(
    ebpf: &mut Ebpf,
    map: &'static str,
    words: usize,
) -> Result<Mapped, LoadError> {
    let failed = |error| MapError::Kernel {
        map,
        source: AyaError::IoError(error),
    };
    match ebpf.take_map(map) {
        Some(Map::Array(data)) => Ok(Mapped::new(MapFdRef(&data), words).map_err(failed)?),
        _ => Err(LoadError::Missing(map)),
    }
}

/// aya's map data knows its descriptor, but isn't `AsFd` itself.
struct MapFdRef<'a>(&'a MapData);

impl std::os::fd::AsFd for MapFdRef<'_> {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.fd().as_fd()
    }
}
