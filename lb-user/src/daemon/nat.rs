//! What NAT needs of the host's own stack.

use std::collections::BTreeSet;

use tracing::warn;

use super::Daemon;
use crate::model::Forward;

impl Daemon {
    /// Warns of settings of the kernel that keep answers of VMs behind NAT from clients. Each one
    /// once, until it is in order.
    pub(super) fn check_host_for_nat(&mut self) {
        let mut families = BTreeSet::new();
        for service in self.engine.desired().services.values() {
            let mut backends = service.backends.values();
            if backends.any(|backend| backend.forward == Forward::Nat) {
                families.insert(service.vip.address.is_ipv4());
            }
        }
        let interfaces = self.engine.desired().interfaces.keys();
        let mut wrong = BTreeSet::new();
        if families.contains(&true) {
            if setting("net.ipv4.ip_forward") == Some(0) {
                wrong.insert("this host forwards no IPv4 packets, so answers of VMs behind \"nat\" don't reach clients: sysctl net.ipv4.ip_forward=1".to_owned());
            }
            let all = setting("net.ipv4.conf.all.rp_filter");
            for interface in interfaces {
                let own = setting(&format!(
                    "net.ipv4.conf.{}.rp_filter",
                    interface.replace('.', "/")
                ));
                if all.max(own) == Some(1) {
                    wrong.insert(format!("interface \"{interface}\" filters by reverse path, so an answer of a VM behind \"nat\" is lost where the host has to look for the client's router first: sysctl net.ipv4.conf.{interface}.rp_filter=2"));
                }
            }
        }
        if families.contains(&false) && setting("net.ipv6.conf.all.forwarding") == Some(0) {
            wrong.insert("this host forwards no IPv6 packets, so answers of VMs behind \"nat\" don't reach clients: sysctl net.ipv6.conf.all.forwarding=1".to_owned());
        }
        for text in wrong.difference(&self.host_warnings) {
            warn!("{text}");
        }
        self.host_warnings = wrong;
    }
}

/// Reads a parameter of the kernel. Names are as sysctl has them: a dot within one is a slash.
fn setting(name: &str) -> Option<u32> {
    let path: String = name
        .chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            c => c,
        })
        .collect();
    let text = std::fs::read_to_string(format!("/proc/sys/{path}")).ok()?;
    text.trim().parse().ok()
}
