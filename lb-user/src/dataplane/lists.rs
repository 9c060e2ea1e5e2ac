//! The guard's maps: lists of prefixes in tries, the filter in front of them, what is in force for
//! all services, and their rates.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use aya::Ebpf;
use aya::maps::{Array, MapData, MapError as AyaError};
use lb_common::bucket::Rates;
use lb_common::guard::{GuardSettings, LIST_BITS, ListId, NEAR_WORDS, PrefixKey4, PrefixKey6};
use lb_common::map_names as names;

use super::MapError;
use super::kernel::{Kernel, update_error};
use super::load::LoadError;
use super::mapped::Mapped;
use super::memory::Memory;
use super::open::{mapped, take, trie};
use super::sys::{delete_batch, lookup_batch, update_batch};
use crate::model::Prefix;

/// A prefix in a list, and what it does: [`lb_common::guard::ALLOW`] or
/// [`lb_common::guard::DENY`].
pub type Entry = (Prefix, u32);

/// Entries that are written or read by one system call.
const BATCH: usize = 4096;

/// What the control loop needs of the guard's maps.
pub trait Lists {
    /// Adds prefixes of one family to a list.
    fn add_prefixes(&mut self, list: ListId, entries: &[Entry]) -> Result<(), MapError>;
    /// Removes prefixes of one family from a list; some may be gone already.
    fn remove_prefixes(&mut self, list: ListId, entries: &[Entry]) -> Result<(), MapError>;
    /// Calls `visit` with every prefix of every list.
    fn visit_prefixes(&self, visit: &mut dyn FnMut(ListId, Entry)) -> Result<(), MapError>;

    /// Stores a word of the filter. One atomic store.
    fn set_near(&mut self, index: u32, word: u64) -> Result<(), MapError>;
    /// Returns a word of the filter.
    fn near(&self, index: u32) -> Result<u64, MapError>;
    /// Returns the words of the filter that are not zero.
    fn near_words(&self) -> Result<BTreeMap<u32, u64>, MapError>;

    /// Sets what is in force for all services.
    fn set_guard(&mut self, settings: GuardSettings) -> Result<(), MapError>;
    /// Returns what is in force for all services.
    fn guard(&self) -> Result<GuardSettings, MapError>;

    /// Sets what a service's packets are limited to.
    fn set_rates(&mut self, slot: u32, rates: &Rates) -> Result<(), MapError>;
    /// Returns what a service's packets are limited to.
    fn rates(&self, slot: u32) -> Result<Rates, MapError>;
}

/// The guard's maps in the kernel.
pub(super) struct KernelLists {
    v4: OwnedFd,
    v6: OwnedFd,
    near: Mapped,
    settings: Array<MapData, GuardSettings>,
    rates: Array<MapData, Rates>,
    capacity: u32,
}

impl KernelLists {
    pub fn take(ebpf: &mut Ebpf, capacity: u32) -> Result<Self, LoadError> {
        Ok(Self {
            v4: trie::<PrefixKey4>(ebpf, names::PREFIXES_V4)?,
            v6: trie::<PrefixKey6>(ebpf, names::PREFIXES_V6)?,
            near: mapped(ebpf, names::NEAR, NEAR_WORDS as usize)?,
            settings: take(ebpf, names::GUARD)?,
            rates: take(ebpf, names::RATES)?,
            capacity,
        })
    }

    fn error(&self, map: &'static str, error: io::Error) -> MapError {
        // What a full trie says.
        if error.raw_os_error() == Some(libc::ENOSPC) {
            let capacity = self.capacity;
            return MapError::Full { map, capacity };
        }
        let source = AyaError::IoError(error);
        MapError::Kernel { map, source }
    }
}

/// Splits entries by family into keys of the tries.
fn keys(list: ListId, entries: &[Entry]) -> (Vec<PrefixKey4>, Vec<PrefixKey6>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for (prefix, _) in entries {
        let (bits, list) = (LIST_BITS + u32::from(prefix.bits()), list.get());
        match prefix.address() {
            IpAddr::V4(address) => v4.push(PrefixKey4 {
                bits,
                list,
                address: address.octets(),
            }),
            IpAddr::V6(address) => v6.push(PrefixKey6 {
                bits,
                list,
                address: address.octets(),
            }),
        }
    }
    (v4, v6)
}

fn add<K: bytemuck::Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &mut impl Iterator<Item = u32>,
) -> io::Result<()> {
    for keys in keys.chunks(BATCH) {
        let values: Vec<u32> = values.take(keys.len()).collect();
        update_batch(map, keys, &values)?;
    }
    Ok(())
}

fn walk<K: bytemuck::Pod>(map: BorrowedFd<'_>, mut visit: impl FnMut(K, u32)) -> io::Result<()> {
    let mut position = None::<K>;
    let (mut keys, mut values) = (vec![K::zeroed(); BATCH], vec![0_u32; BATCH]);
    loop {
        let (count, more) = lookup_batch(map, &mut position, &mut keys, &mut values)?;
        for (key, value) in keys.iter().zip(&values).take(count) {
            visit(*key, *value);
        }
        if !more {
            return Ok(());
        }
    }
}

/// Returns the list and prefix of a key; nothing if the key is none of ours.
fn entry(list: u32, bits: u32, address: IpAddr, action: u32) -> Option<(ListId, Entry)> {
    let len = u8::try_from(bits.checked_sub(LIST_BITS)?).ok()?;
    let prefix = Prefix::of(address, len)?;
    Some((ListId::from_stored(list), (prefix, action)))
}

impl Lists for Kernel {
    fn add_prefixes(&mut self, list: ListId, entries: &[Entry]) -> Result<(), MapError> {
        let lists = &self.lists;
        let (v4, v6) = keys(list, entries);
        let of_family = |v4: bool| {
            let entries = entries.iter();
            entries
                .filter(move |(prefix, _)| prefix.is_ipv4() == v4)
                .map(|(_, action)| *action)
        };
        add(lists.v4.as_fd(), &v4, &mut of_family(true))
            .map_err(|error| lists.error(names::PREFIXES_V4, error))?;
        add(lists.v6.as_fd(), &v6, &mut of_family(false))
            .map_err(|error| lists.error(names::PREFIXES_V6, error))
    }

    fn remove_prefixes(&mut self, list: ListId, entries: &[Entry]) -> Result<(), MapError> {
        let lists = &self.lists;
        let (v4, v6) = keys(list, entries);
        delete_batch(lists.v4.as_fd(), &v4)
            .map_err(|error| lists.error(names::PREFIXES_V4, error))?;
        delete_batch(lists.v6.as_fd(), &v6).map_err(|error| lists.error(names::PREFIXES_V6, error))
    }

    fn visit_prefixes(&self, visit: &mut dyn FnMut(ListId, Entry)) -> Result<(), MapError> {
        let lists = &self.lists;
        let mut found = |entry: Option<(ListId, Entry)>| {
            if let Some((list, entry)) = entry {
                visit(list, entry);
            }
        };
        walk(lists.v4.as_fd(), |key: PrefixKey4, action| {
            found(entry(key.list, key.bits, key.address.into(), action));
        })
        .map_err(|error| lists.error(names::PREFIXES_V4, error))?;
        walk(lists.v6.as_fd(), |key: PrefixKey6, action| {
            found(entry(key.list, key.bits, key.address.into(), action));
        })
        .map_err(|error| lists.error(names::PREFIXES_V6, error))
    }

    fn set_near(&mut self, index: u32, word: u64) -> Result<(), MapError> {
        let near = self.lists.near.word(index as usize);
        near.ok_or(no_word(index))?.store(word, Ordering::Release);
        Ok(())
    }

    fn near(&self, index: u32) -> Result<u64, MapError> {
        let near = self.lists.near.word(index as usize);
        Ok(near.ok_or(no_word(index))?.load(Ordering::Acquire))
    }

    fn near_words(&self) -> Result<BTreeMap<u32, u64>, MapError> {
        let mut words = BTreeMap::new();
        for index in 0..NEAR_WORDS {
            let word = self.near(index)?;
            if word != 0 {
                words.insert(index, word);
            }
        }
        Ok(words)
    }

    fn set_guard(&mut self, settings: GuardSettings) -> Result<(), MapError> {
        self.lists
            .settings
            .set(0, settings, 0)
            .map_err(|source| update_error(names::GUARD, 1, source))
    }

    fn guard(&self) -> Result<GuardSettings, MapError> {
        self.lists
            .settings
            .get(&0, 0)
            .map_err(|source| MapError::Kernel {
                map: names::GUARD,
                source,
            })
    }

    fn set_rates(&mut self, slot: u32, rates: &Rates) -> Result<(), MapError> {
        let map = &mut self.lists.rates;
        let set = map.set(slot, *rates, 0);
        set.map_err(|source| update_error(names::RATES, map.len(), source))
    }

    fn rates(&self, slot: u32) -> Result<Rates, MapError> {
        let rates = self.lists.rates.get(&slot, 0);
        rates.map_err(|source| MapError::Kernel {
            map: names::RATES,
            source,
        })
    }
}

const fn no_word(index: u32) -> MapError {
    MapError::OutOfRange {
        map: names::NEAR,
        index,
        capacity: NEAR_WORDS,
    }
}

impl Lists for Memory {
    fn add_prefixes(&mut self, list: ListId, entries: &[Entry]) -> Result<(), MapError> {
        for (prefix, action) in entries {
            let same_family = |(_, other): &&(ListId, Prefix)| other.is_ipv4() == prefix.is_ipv4();
            let used = self.prefixes.keys().filter(same_family).count();
            let capacity = self.limits.guard_prefixes;
            if used >= capacity as usize && !self.prefixes.contains_key(&(list, *prefix)) {
                let map = if prefix.is_ipv4() {
                    names::PREFIXES_V4
                } else {
                    names::PREFIXES_V6
                };
                return Err(MapError::Full { map, capacity });
            }
            self.prefixes.insert((list, *prefix), *action);
        }
        Ok(())
    }

    fn remove_prefixes(&mut self, list: ListId, entries: &[Entry]) -> Result<(), MapError> {
        for (prefix, _) in entries {
            self.prefixes.remove(&(list, *prefix));
        }
        Ok(())
    }

    fn visit_prefixes(&self, visit: &mut dyn FnMut(ListId, Entry)) -> Result<(), MapError> {
        for ((list, prefix), action) in &self.prefixes {
            visit(*list, (*prefix, *action));
        }
        Ok(())
    }

    fn set_near(&mut self, index: u32, word: u64) -> Result<(), MapError> {
        if index >= NEAR_WORDS {
            return Err(no_word(index));
        }
        if word == 0 {
            self.near.remove(&index);
        } else {
            self.near.insert(index, word);
        }
        Ok(())
    }

    fn near(&self, index: u32) -> Result<u64, MapError> {
        Ok(self.near.get(&index).copied().unwrap_or(0))
    }

    fn near_words(&self) -> Result<BTreeMap<u32, u64>, MapError> {
        Ok(self.near.clone())
    }

    fn set_guard(&mut self, settings: GuardSettings) -> Result<(), MapError> {
        self.guard = settings;
        Ok(())
    }

    fn guard(&self) -> Result<GuardSettings, MapError> {
        Ok(self.guard)
    }

    fn set_rates(&mut self, slot: u32, rates: &Rates) -> Result<(), MapError> {
        self.rates.insert(slot, *rates);
        Ok(())
    }

    fn rates(&self, slot: u32) -> Result<Rates, MapError> {
        Ok(self.rates.get(&slot).copied().unwrap_or_default())
    }
}
