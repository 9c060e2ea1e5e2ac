//! bookworm-backports beside Debian's own suite, from the same mirror.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Where apt looks for sources besides `sources.list`.
const PARTS: &str = "/etc/apt/sources.list.d";

/// Adds it to apt's sources.
pub fn enable() -> Result<()> {
    let mut files = vec!["/etc/apt/sources.list".into()];
    let parts = fs::read_dir(PARTS).into_iter().flatten().flatten();
    files.extend(parts.map(|entry| entry.path()));
    files.sort();
    let found = files.iter().find_map(|file| {
        let text = fs::read_to_string(file).ok()?;
        let extension = file.extension()?.to_str()?;
        let backports = match extension {
            "sources" => of_paragraphs(&text),
            "list" => of_lines(&text),
            _ => None,
        };
        Some((backports?, extension))
    });
    let (text, extension) = found.context(
        "no source in /etc/apt has the suite bookworm: add bookworm-backports to them by hand",
    )?;
    let target = Path::new(PARTS).join(format!("weir-backports.{extension}"));
    println!("setup: adding {}", target.display());
    fs::write(&target, text).with_context(|| format!("writing {}", target.display()))
}

/// Returns the paragraph of a deb822 file, such as `debian.sources`, that names the suite
/// bookworm, for its backports.
fn of_paragraphs(sources: &str) -> Option<String> {
    let paragraph = sources.split("\n\n").find(|paragraph| {
        let mut lines = paragraph.lines();
        lines.any(|line| {
            line.strip_prefix("Suites:")
                .is_some_and(|suites| suites.split_whitespace().any(|suite| suite == "bookworm"))
        })
    })?;
    let lines = paragraph.lines().map(|line| {
        if line.starts_with("Suites:") {
            "Suites: bookworm-backports"
        } else {
            line
        }
    });
    Some(lines.collect::<Vec<_>>().join("\n") + "\n")
}

/// Returns the line of a file such as `sources.list` that names the suite bookworm, for its
/// backports: `deb [options] URI SUITE COMPONENT ...`.
fn of_lines(sources: &str) -> Option<String> {
    sources.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let options = if rest.starts_with('[') {
            rest.find(']')? + 1
        } else {
            0
        };
        let mut words = rest.get(options..)?.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        let components: Vec<&str> = words.collect();
        let options = rest.get(..options)?;
        let blank = if options.is_empty() { "" } else { " " };
        (suite == "bookworm").then(|| {
            let components = components.join(" ");
            format!("deb {options}{blank}{uri} bookworm-backports {components}\n")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backports_come_from_the_machines_own_mirror() {
        let sources = "\
Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
";
        let expected = "\
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm-backports
Components: main
";
        assert_eq!(of_paragraphs(sources).as_deref(), Some(expected));
        assert_eq!(of_paragraphs("Suites: trixie"), None);
    }

    #[test]
    fn a_machine_set_up_by_debians_installer_has_one_line_for_each_source() {
        let sources = "\
# deb cdrom:[Debian GNU/Linux 12] bookworm main
deb http://mirror.example/security bookworm-security main
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/debian/ bookworm main non-free-firmware
";
        assert_eq!(
            of_lines(sources).as_deref(),
            Some("deb http://mirror.example/debian/ bookworm-backports main non-free-firmware\n")
        );
        assert_eq!(
            of_lines("deb [arch=amd64 trusted=yes] http://mirror.example bookworm main").as_deref(),
            Some("deb [arch=amd64 trusted=yes] http://mirror.example bookworm-backports main\n")
        );
        assert_eq!(of_lines("deb http://mirror.example trixie main"), None);
        assert_eq!(of_lines("deb"), None);
    }
}
