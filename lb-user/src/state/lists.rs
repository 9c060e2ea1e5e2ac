use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::model::{Desired, ListKind, Name, Prefixes};

/// Whose list, and which.
pub type ListOwner = (Option<Name>, ListKind);

/// Lists of sources that the operator loaded while weir ran: each takes the place of the one that
/// the configuration file declares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadedLists(BTreeMap<ListOwner, Prefixes>);

impl LoadedLists {
    /// Puts them into a declaration. Returns a line for each that has no effect.
    pub fn apply(&self, desired: &mut Desired) -> Vec<String> {
        let mut idle = Vec::new();
        for ((service, kind), prefixes) in &self.0 {
            let guard = match service {
                None => Some(&mut desired.guard),
                Some(name) => desired.services.get_mut(name).map(|s| &mut s.guard),
            };
            match guard {
                Some(guard) => *guard.list_mut(*kind) = Some(prefixes.clone()),
                None => idle.push(format!(
                    "{}: there is no such service",
                    title(service.as_ref(), *kind)
                )),
            }
        }
        idle
    }

    /// Returns a line for each.
    pub fn lines(&self) -> Vec<String> {
        let lists = self.0.iter();
        lists
            .map(|((service, kind), prefixes)| {
                let count = prefixes.as_slice().len();
                format!(
                    "{}: loaded, {count} prefixes",
                    title(service.as_ref(), *kind)
                )
            })
            .collect()
    }

    /// Returns a list.
    pub fn get(&self, owner: &ListOwner) -> Option<&Prefixes> {
        self.0.get(owner)
    }

    /// Sets a list, or forgets it.
    pub fn set(&mut self, owner: ListOwner, prefixes: Option<Prefixes>) {
        match prefixes {
            Some(prefixes) => self.0.insert(owner, prefixes),
            None => self.0.remove(&owner),
        };
    }

    /// Returns what differs from `before`: lists, or nothing for those that are gone.
    pub fn changes<'a>(
        &'a self,
        before: &'a Self,
    ) -> impl Iterator<Item = (&'a ListOwner, Option<&'a Prefixes>)> {
        let gone = before.0.keys().filter(|owner| !self.0.contains_key(*owner));
        let new = self
            .0
            .iter()
            .filter(|(owner, l)| before.get(owner) != Some(*l));
        new.map(|(owner, list)| (owner, Some(list)))
            .chain(gone.map(|owner| (owner, None)))
    }
}

/// Returns what a list is called.
fn title(service: Option<&Name>, kind: ListKind) -> String {
    let kind = kind.as_str();
    match service {
        Some(name) => format!("service \"{name}\", guard, {kind}"),
        None => format!("guard, {kind}"),
    }
}

/// Returns the name of a list's file in the state directory.
pub(super) fn file_name((service, kind): &ListOwner) -> String {
    match service {
        // No name of a service has this character.
        Some(name) => format!("guard-{}@{name}", kind.as_str()),
        None => format!("guard-{}", kind.as_str()),
    }
}

/// Returns whose list a file in the state directory is.
pub(super) fn owner(file_name: &str) -> Option<ListOwner> {
    let rest = file_name.strip_prefix("guard-")?;
    let (kind, service) = match rest.split_once('@') {
        Some((kind, service)) => (kind, Some(service.parse().ok()?)),
        None => (rest, None),
    };
    let kind = ListKind::ALL.into_iter().find(|k| k.as_str() == kind)?;
    Some((service, kind))
}

/// Returns a list as it is stored: as operators write it.
pub(super) fn text(prefixes: &Prefixes) -> String {
    let mut text = String::new();
    for prefix in prefixes.as_slice() {
        // Writing to a text can't fail.
        let _ = writeln!(text, "{prefix}");
    }
    text
}
