//! Lists of sources: showing, loading, and what would happen to one.

use std::net::IpAddr;

use super::Daemon;
use crate::api::{
    Error, GuardTest, GuardTested, GuardView, ListLoad, ListReset, ListView, RateView, SourceView,
};
use crate::model::{Guard, Judged, ListKind, Name, Service};
use crate::spec::{Checker, read_prefixes, shut};
use crate::state::{ListOwner, LoadedLists};

impl Daemon {
    pub(super) fn guard_view(&self) -> GuardView {
        let desired = self.engine.desired();
        let services = desired.services.iter();
        let guards = services.map(|(name, service)| (Some(name.clone()), &service.guard));
        let mut lists = Vec::new();
        for (service, guard) in [(None, &desired.guard)].into_iter().chain(guards) {
            for kind in ListKind::ALL {
                let Some(list) = guard.list(kind) else {
                    continue;
                };
                let owner = (service.clone(), kind);
                let loaded = self.lists.get(&owner).is_some();
                lists.push(ListView {
                    service: service.as_ref().map(ToString::to_string),
                    list: kind.as_str().to_owned(),
                    ipv4: list.of_family(true).len() as u64,
                    ipv6: list.of_family(false).len() as u64,
                    loaded,
                });
            }
        }
        let mut rates = Vec::new();
        for (name, service) in &desired.services {
            for (rate, limit) in service.rates.all() {
                rates.extend(limit.map(|limit| RateView {
                    service: name.to_string(),
                    rate: rate.to_owned(),
                    per_second: limit.per_second,
                    burst: limit.burst,
                }));
            }
        }
        GuardView { lists, rates }
    }

    /// Says of each service of a source's family whether it would be let in.
    pub(super) fn guard_test(&self, request: &GuardTest) -> Result<GuardTested, Error> {
        let mut check = Checker::new("");
        let source = check.address("source", &request.source);
        let source = check.finish(source).map_err(super::commands::invalid)?;
        let desired = self.engine.desired();
        let of_family = |service: &&Service| service.vip.address.is_ipv4() == source.is_ipv4();
        let services = desired.services.values().filter(of_family);
        let services = services
            .map(|service| {
                let (let_in, why) = judge(&desired.guard, service, source);
                SourceView {
                    service: service.name.to_string(),
                    let_in,
                    why,
                }
            })
            .collect();
        Ok(GuardTested { services })
    }

    /// Puts a list in the place of the one that the file declares.
    pub(super) fn load_list(&mut self, request: &ListLoad) -> Result<Vec<String>, Error> {
        let (owner, v4) = self.list_owner(request.service.as_deref(), &request.list)?;
        let prefixes = read_prefixes(&request.text, &request.file).map_err(Error::Invalid)?;
        let prefixes = prefixes.into_iter().collect();
        let mut guard = Guard::default();
        *guard.list_mut(owner.1) = Some(prefixes);
        if let Some(error) = shut(&guard, v4) {
            return Err(Error::Invalid(vec![format!("{}: {error}", request.file)]));
        }
        let mut lists = self.lists.clone();
        lists.set(owner.clone(), guard.list(owner.1).cloned());
        self.declare_lists(lists)
    }

    /// Puts the list that the file declares, if any, in force again.
    pub(super) fn reset_list(&mut self, request: &ListReset) -> Result<Vec<String>, Error> {
        let (owner, _) = self.list_owner(request.service.as_deref(), &request.list)?;
        if self.lists.get(&owner).is_none() {
            let reason = format!("no {} list was loaded there", owner.1.as_str());
            return Err(Error::NotFound(reason));
        }
        let mut lists = self.lists.clone();
        lists.set(owner, None);
        self.declare_lists(lists)
    }

    fn declare_lists(&mut self, lists: LoadedLists) -> Result<Vec<String>, Error> {
        self.declare_all(self.file.clone(), self.overrides.clone(), lists)
    }

    /// Returns which list is meant, and the family of its sources if it has but one.
    fn list_owner(
        &self,
        service: Option<&str>,
        list: &str,
    ) -> Result<(ListOwner, Option<bool>), Error> {
        let mut check = Checker::new("");
        let kind = check.word("list", list, &ListKind::ALL.map(|k| (k.as_str(), k)));
        let name: Option<Option<Name>> = match service {
            Some(name) => check.parse("service", name).map(Some),
            None => Some(None),
        };
        let owner = check.finish(name.zip(kind));
        let owner = owner.map_err(super::commands::invalid)?;
        let v4 = match &owner.0 {
            Some(name) => Some(self.service(name)?.vip.address.is_ipv4()),
            None => None,
        };
        Ok((owner, v4))
    }
}

/// Returns whether a source is let in to a service, and why.
fn judge(global: &Guard, service: &Service, source: IpAddr) -> (bool, String) {
    let mut let_in = "no list says otherwise".to_owned();
    for (guard, whose) in [
        (global, "the global list"),
        (&service.guard, "the service's list"),
    ] {
        match guard.judge(source) {
            Judged::LetIn(None) => {}
            Judged::LetIn(Some(prefix)) => let_in = format!("{whose} allows {prefix}"),
            Judged::Denied(prefix) => return (false, format!("{whose} denies {prefix}")),
            Judged::NotAllowed => return (false, format!("{whose} allows others only")),
        }
    }
    (true, let_in)
}
