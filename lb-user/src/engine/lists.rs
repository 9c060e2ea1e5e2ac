//! Lists of sources. A list is filled under a number of its own before packets are told that
//! number, and emptied after the last packet that may have read it has left: every packet sees a
//! list whole, also over a crash of the daemon, after which the next one knows lists by what is in
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use lb_common::guard::{ALLOW, Blocks, DENY, GuardSettings, ListId, near_bit};
use tracing::info;

use super::{Engine, EngineError, RETRY};
use crate::dataplane::{Dataplane, Entry, GRACE, MapError};
use crate::model::{Guard, ListKind, Name, Prefix};

/// A list of one family, as it lies in a trie: each prefix once, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct List {
    entries: Vec<Entry>,
    keeps_out: bool,
}

impl List {
    /// Returns a guard's list of a family; nothing if it lets everybody in.
    pub fn of(guard: &Guard, v4: bool) -> Option<Self> {
        let part = |kind: ListKind| guard.list(kind).map_or(&[][..], |list| list.of_family(v4));
        let mut entries: BTreeMap<Prefix, u32> = BTreeMap::new();
        entries.extend(part(ListKind::Allow).iter().map(|prefix| (*prefix, ALLOW)));
        // Deny wins between two of one length.
        entries.extend(part(ListKind::Deny).iter().map(|prefix| (*prefix, DENY)));
        let list = Self {
            entries: entries.into_iter().collect(),
            keeps_out: guard.allow.is_some(),
        };
        (list.keeps_out || !list.entries.is_empty()).then_some(list)
    }

    /// Calls `set` with every bit that the list needs in the filter. Returns whether there are
    /// prefixes that are too short for it.
    fn mark(&self, id: ListId, mut set: impl FnMut(u32)) -> bool {
        let mut always = false;
        for (prefix, _) in &self.entries {
            let (blocks, high) = match prefix.address() {
                std::net::IpAddr::V4(address) => (Blocks::V4, u64::from(address.to_bits()) << 32),
                std::net::IpAddr::V6(address) => (Blocks::V6, (address.to_bits() >> 64) as u64),
            };
            match blocks.marked(high, u32::from(prefix.bits())) {
                Some((fine, first, count)) => {
                    (first..first + count).for_each(|block| set(near_bit(id, fine, block)));
                }
                None => always = true,
            }
        }
        always
    }

    fn mark_words(&self, id: ListId, words: &mut BTreeMap<u32, u64>) {
        self.mark(id, |bit| {
            *words.entry(bit / 64).or_default() |= 1 << (bit % 64);
        });
    }

    fn id(&self, serial: u32) -> ListId {
        ListId::new(serial, self.keeps_out, self.mark(ListId::NONE, |_| {}))
    }
}

/// Fills a list.
fn fill(dataplane: &mut impl Dataplane, id: ListId, list: &List) -> Result<(), MapError> {
    // The filter first: it may say too often that there is something near, and never too seldom.
    let mut words = BTreeMap::new();
    list.mark_words(id, &mut words);
    for (index, bits) in words {
        let word = dataplane.near(index)?;
        dataplane.set_near(index, word | bits)?;
    }
    dataplane.add_prefixes(id, &list.entries)
}

/// Fills a guard's list of a family on a data plane that has no engine, under a serial number that
/// is not in use: for tests and benchmarks. Returns the list's number.
pub fn fill_list(
    dataplane: &mut impl Dataplane,
    guard: &Guard,
    v4: bool,
    serial: u32,
) -> Result<ListId, MapError> {
    let Some(list) = List::of(guard, v4) else {
        return Ok(ListId::NONE);
    };
    let id = list.id(serial);
    fill(dataplane, id, &list)?;
    Ok(id)
}

/// Whose lists they are: a service's, or everybody's.
type Owner = Option<Name>;

/// The lists in the tries, and who has which.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// What was declared for each owner when its lists were made, and those: IPv4, IPv6.
    of_owner: BTreeMap<Owner, (Guard, [ListId; 2])>,
    /// What the tries hold.
    held: BTreeMap<ListId, List>,
    /// Lists that nobody has, and since when.
    idle: BTreeMap<ListId, Instant>,
    settings: GuardSettings,
}

impl Lists {
    fn find(&self, list: &List) -> Option<ListId> {
        let mut held = self.held.iter();
        held.find(|(id, held)| *held == list && id.keeps_out() == list.keeps_out)
            .map(|(id, _)| *id)
    }

    /// Returns how many prefixes of a family the tries would hold at most while these guards take
    /// the place of others.
    pub fn wanted<'a>(&self, guards: impl Iterator<Item = &'a Guard>, v4: bool) -> usize {
        let known: BTreeSet<&Guard> = self.of_owner.values().map(|(guard, _)| guard).collect();
        let guards: BTreeSet<&Guard> = guards.filter(|guard| !known.contains(guard)).collect();
        let new = guards
            .into_iter()
            .filter_map(|guard| List::of(guard, v4))
            .filter(|list| self.find(list).is_none());
        let of_family = |list: &List| list.entries.first().is_some_and(|(p, _)| p.is_ipv4() == v4);
        let held = self.held.values().filter(|list| of_family(list));
        new.map(|list| list.entries.len()).sum::<usize>()
            + held.map(|list| list.entries.len()).sum::<usize>()
    }
}

impl<D: Dataplane> Engine<D> {
    /// Fills the lists that are declared and not there. Returns what failed; who waits for such a
    /// list keeps the one that it has.
    pub(super) fn fill_lists(&mut self, now: Instant) -> Vec<EngineError> {
        let mut failed = Vec::new();
        let services = self.desired.services.iter();
        let guards = services.map(|(name, service)| (Some(name.clone()), service.guard.clone()));
        let guards: Vec<(Owner, Guard)> =
            guards.chain([(None, self.desired.guard.clone())]).collect();
        for (owner, guard) in guards {
            let known = self.lists.of_owner.get(&owner);
            if known.is_some_and(|(made_for, _)| *made_for == guard) {
                continue;
            }
            match self.lists_for(&guard) {
                Ok(ids) => {
                    self.lists.of_owner.insert(owner.clone(), (guard, ids));
                    self.dirty.extend(owner);
                }
                Err(error) => match owner {
                    Some(name) => {
                        self.again.insert(name.clone(), now + RETRY);
                        failed.push(EngineError::from(error).of(&name));
                    }
                    None => failed.push(error.into()),
                },
            }
        }
        let services = &self.desired.services;
        self.lists.of_owner.retain(|owner, _| {
            owner
                .as_ref()
                .is_none_or(|name| services.contains_key(name))
        });
        failed.extend(self.set_global_lists().err().map(EngineError::from));
        failed
    }

    fn lists_for(&mut self, guard: &Guard) -> Result<[ListId; 2], MapError> {
        let mut ids = [ListId::NONE; 2];
        for (id, v4) in ids.iter_mut().zip([true, false]) {
            if let Some(list) = List::of(guard, v4) {
                *id = match self.lists.find(&list) {
                    Some(id) => id,
                    None => self.fill_list(list)?,
                };
            }
        }
        Ok(ids)
    }

    fn fill_list(&mut self, list: List) -> Result<ListId, MapError> {
        let used: BTreeSet<u32> = self.lists.held.keys().map(|id| id.get() >> 2).collect();
        let serial = (1..).find(|serial| !used.contains(serial)).unwrap_or(1);
        let id = list.id(serial);
        if let Err(error) = fill(&mut self.dataplane, id, &list) {
            // What was added is taken out again; if that fails too, the number stays taken.
            if self.dataplane.remove_prefixes(id, &list.entries).is_err() {
                self.lists.held.insert(id, list);
            }
            return Err(error);
        }
        info!(
            list = id.get(),
            prefixes = list.entries.len(),
            "list of sources filled"
        );
        self.lists.held.insert(id, list);
        Ok(id)
    }

    fn set_global_lists(&mut self) -> Result<(), MapError> {
        let Some((_, [v4, v6])) = self.lists.of_owner.get(&None) else {
            return Ok(());
        };
        let before = self.lists.settings;
        let wanted = GuardSettings {
            list_v4: v4.get(),
            list_v6: v6.get(),
        };
        if wanted != before {
            self.dataplane.set_guard(wanted)?;
            self.lists.settings = wanted;
            // Whether packets have to look there stands in each service.
            self.dirty.extend(self.desired.services.keys().cloned());
        }
        Ok(())
    }

    /// Returns a service's list, and whether its sources are judged by any; nothing if its list
    /// could not be made.
    pub(super) fn list_of(&self, name: &Name) -> Option<(ListId, bool)> {
        let v4 = self.desired.services.get(name)?.vip.address.is_ipv4();
        let settings = self.lists.settings;
        let (of_v4, of_v6) = (settings.list_v4, settings.list_v6);
        let global = if v4 { of_v4 } else { of_v6 };
        let (_, [of_v4, of_v6]) = self.lists.of_owner.get(&Some(name.clone()))?;
        let own = if v4 { *of_v4 } else { *of_v6 };
        Some((own, global != 0 || !own.is_none()))
    }

    /// Empties the lists that nobody has.
    pub(super) fn empty_lists(&mut self, now: Instant) -> Result<(), MapError> {
        let owned = self.lists.of_owner.values().flat_map(|(_, ids)| *ids);
        let installed = self.installed.values().map(|service| service.guard_list);
        let settings = self.lists.settings;
        let used: BTreeSet<ListId> = owned
            .chain(installed)
            .chain([settings.list_v4, settings.list_v6].map(ListId::from_stored))
            .collect();
        let lists = &mut self.lists;
        lists.idle.retain(|id, _| !used.contains(id));
        for id in lists.held.keys().filter(|id| !used.contains(id)) {
            lists.idle.entry(*id).or_insert(now);
        }
        let due = lists
            .idle
            .iter()
            .filter(|(_, since)| **since + GRACE <= now);
        let due: Vec<ListId> = due.map(|(id, _)| *id).collect();
        for id in &due {
            if let Some(list) = self.lists.held.get(id) {
                self.dataplane.remove_prefixes(*id, &list.entries)?;
                self.lists.held.remove(id);
            }
            self.lists.idle.remove(id);
        }
        if due.is_empty() {
            return Ok(());
        }
        self.write_filter()
    }

    /// Returns when a list that nobody has may be emptied.
    pub(super) fn lists_deadline(&self) -> Option<Instant> {
        self.lists.idle.values().map(|since| *since + GRACE).min()
    }

    /// Returns the filter's words as the lists need them, as far as they are not zero.
    fn filter_words(&self) -> BTreeMap<u32, u64> {
        let mut words = BTreeMap::new();
        for (id, list) in &self.lists.held {
            list.mark_words(*id, &mut words);
        }
        words
    }

    fn write_filter(&mut self) -> Result<(), MapError> {
        let (found, wanted) = (self.dataplane.near_words()?, self.filter_words());
        for index in found.keys().chain(wanted.keys()) {
            let word = wanted.get(index).copied().unwrap_or(0);
            if found.get(index) != Some(&word) {
                self.dataplane.set_near(*index, word)?;
            }
        }
        Ok(())
    }

    /// Takes over the lists of an earlier daemon. What that one was still filling when it died, or
    /// had not emptied yet, nobody has: it goes.
    pub(super) fn adopt_lists(&mut self) -> Result<(), MapError> {
        self.lists.held = self.found_lists()?;
        self.lists.settings = self.dataplane.guard()?;
        self.write_filter()
    }

    fn found_lists(&self) -> Result<BTreeMap<ListId, List>, MapError> {
        let mut found: BTreeMap<ListId, List> = BTreeMap::new();
        self.dataplane.visit_prefixes(&mut |id, entry| {
            found.entry(id).or_default().entries.push(entry);
        })?;
        for (id, list) in &mut found {
            list.keeps_out = id.keeps_out();
            list.entries.sort_unstable();
        }
        Ok(found)
    }

    /// Compares the guard's maps with what the daemon put there.
    pub(super) fn audit_lists(
        &self,
        compare: &mut dyn FnMut(bool, &dyn Fn() -> String),
    ) -> Result<(), MapError> {
        let found = self.found_lists()?;
        let nothing = List::default();
        for id in found
            .keys()
            .chain(self.lists.held.keys())
            .collect::<BTreeSet<_>>()
        {
            let found = found.get(id).unwrap_or(&nothing);
            let expected = self.lists.held.get(id).unwrap_or(&nothing);
            let all: BTreeSet<&Entry> = found.entries.iter().chain(&expected.entries).collect();
            for entry in all {
                let (is, should) = (
                    found.entries.binary_search(entry).is_ok(),
                    expected.entries.binary_search(entry).is_ok(),
                );
                compare(is && should, &|| {
                    let what = if is {
                        "found, but not declared"
                    } else {
                        "missing"
                    };
                    format!("list {}, prefix {}: {what}", id.get(), entry.0)
                });
            }
        }
        let settings = self.dataplane.guard()?;
        compare(settings == self.lists.settings, &|| {
            format!(
                "guard: found {settings:?}, expected {:?}",
                self.lists.settings
            )
        });
        let (found, wanted) = (self.dataplane.near_words()?, self.filter_words());
        for index in found.keys().chain(wanted.keys()).collect::<BTreeSet<_>>() {
            let (found, wanted) = (found.get(index), wanted.get(index));
            compare(found == wanted, &|| {
                format!("filter of prefixes, word {index}: found {found:x?}, expected {wanted:x?}")
            });
        }
        Ok(())
    }
}
