//! Names of what tests make in the kernel. They say which process made it, so that what a killed
//! test left behind is told from what a running one uses.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

/// What all names begin with; the process's number and its start follow.
const PREFIX: &str = "weirtest";

/// Returns a name that nobody else has: of this process and counted up.
#[must_use]
pub fn unique(tag: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let pid = std::process::id();
    let start = start_of(pid).expect("our own process");
    name(pid, start, next, tag)
}

/// Returns whether this is the name of something that a process made which is gone. The number of
/// a process is given to another one in time; its start tells the two apart.
#[must_use]
pub fn is_left_behind(name: &str) -> bool {
    maker(name).is_some_and(|(pid, start)| start_of(pid) != Some(start))
}

fn name(pid: u32, start: u64, next: u32, tag: &str) -> String {
    format!("{PREFIX}-{pid}-{start}-{next}-{tag}")
}

/// Returns the process that a name names, and when it started. Nothing for names of other forms:
/// they are not ours.
fn maker(name: &str) -> Option<(u32, u64)> {
    let mut parts = name.splitn(5, '-');
    if parts.next() != Some(PREFIX) {
        return None;
    }
    let pid = parts.next()?.parse().ok()?;
    let start = parts.next()?.parse().ok()?;
    parts.next()?.parse::<u32>().ok()?;
    parts.next()?;
    Some((pid, start))
}

/// Returns when a process started, in ticks since the machine did, or nothing if there is none or
/// it has ended.
fn start_of(pid: u32) -> Option<u64> {
    start_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads field 22 of `/proc/PID/stat` (proc_pid_stat(5)). The second is the command in
/// parentheses, which may hold blanks and parentheses itself; the third says whether the process
/// has ended and only its parent hasn't asked how.
fn start_in(stat: &str) -> Option<u64> {
    let (_, from_third) = stat.rsplit_once(')')?;
    let mut fields = from_third.split_whitespace();
    let state = fields.next()?;
    let start = fields.nth(22 - 4)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait;

    #[test]
    fn names_differ_and_say_who_made_them() {
        let names = [unique("a"), unique("a-b"), unique("a")];
        assert!(names[0] != names[1] && names[0] != names[2]);
        let pid = std::process::id();
        for made in &names {
            assert_eq!(maker(made), Some((pid, start_of(pid).unwrap())), "{made}");
            assert!(!is_left_behind(made), "{made}: its process runs");
        }
    }

    #[test]
    fn what_another_process_of_that_number_made_is_left_behind() {
        let pid = std::process::id();
        let start = start_of(pid).unwrap();
        assert!(is_left_behind(&name(pid, start - 1, 0, "a")));
        assert!(is_left_behind(&name(pid, start + 1, 0, "a")));
        // No process has such a number: /proc/sys/kernel/pid_max is 2^22 at most.
        assert!(is_left_behind(&name(u32::MAX, start, 0, "a")));
    }

    #[test]
    fn an_ended_process_no_longer_protects_what_it_made() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let made = name(child.id(), start_of(child.id()).unwrap(), 0, "a");
        assert!(!is_left_behind(&made));
        drop(child.stdin.take());
        // Before its parent asks how it ended, and after.
        wait::until("the process to end", || is_left_behind(&made).then_some(()));
        child.wait().unwrap();
        assert!(is_left_behind(&made));
    }

    #[test]
    fn names_of_other_forms_are_not_touched() {
        for other in [
            "weir",
            "weirtest",
            "weirtest-",
            "weirtest-1-2-3",
            "weirtest-1-2-tag",
            "weirtest-x-2-3-tag",
            "weirtest-1--3-tag",
            "weirtests-4294967295-2-3-tag",
            "other-4294967295-2-3-tag",
        ] {
            assert!(!is_left_behind(other), "{other}");
        }
    }

    #[test]
    fn the_start_is_found_behind_any_command() {
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        for command in ["cat", "a b", "a) S 9 (b", ""] {
            let stat = format!("7 ({command}) S {}\n", fields.join(" "));
            assert_eq!(start_in(&stat), Some(22), "{command}");
        }
        assert_eq!(start_in("7 (cat) S 1 2"), None);
        assert_eq!(start_in(&format!("7 (cat) Z {}", fields.join(" "))), None);
    }
}
