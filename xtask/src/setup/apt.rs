use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::need::Package;
use super::unpack::find;
use crate::run::{is_root, output, run};

/// Debian's packages. Their lists are brought up to date before the first use, and once.
#[derive(Debug, Default)]
pub struct Apt {
    updated: bool,
}

impl Apt {
    /// Brings the lists of packages up to date, which only root can.
    pub fn update(&mut self) -> Result<()> {
        if !self.updated && is_root() {
            apt(&["update"]).context(
                "the lists of Debian's packages can't be had: check the network, and the sources in /etc/apt",
            )?;
        }
        self.updated = true;
        Ok(())
    }

    /// Makes the next use bring the lists up to date: the sources are others now.
    pub const fn forget(&mut self) {
        self.updated = false;
    }

    /// Installs packages; what can't be had is named.
    pub fn install(&mut self, packages: &[&Package]) -> Result<()> {
        self.update()?;
        for package in packages {
            let known = output("apt-cache", &["show", &package.name]);
            if known.is_none_or(|text| text.trim().is_empty()) {
                bail!(
                    "apt knows no {} ({}): it comes from {}, which has to be among the sources in /etc/apt",
                    package.name,
                    package.purpose,
                    package.from
                );
            }
        }
        let names: Vec<&str> = packages.iter().map(|one| one.name.as_str()).collect();
        self.install_with(&[], &names).with_context(|| {
            let list: Vec<String> = packages
                .iter()
                .map(|package| format!("{} ({})", package.name, package.purpose))
                .collect();
            format!(
                "not installed: {}: apt says above why; install it by hand, and run this again",
                list.join(", ")
            )
        })
    }

    /// Installs packages with further options.
    pub fn install_with(&mut self, options: &[&str], names: &[&str]) -> Result<()> {
        self.update()?;
        let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
        arguments.extend(options);
        arguments.extend(names);
        apt(&arguments)
    }

    /// Unpacks a package into a directory that is made anew, without installing it.
    pub fn unpack(&mut self, package: &str, directory: &Path) -> Result<()> {
        self.update()?;
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        fs::create_dir_all(directory)?;
        // apt puts the package into its current directory.
        let download = format!(
            "cd '{}' && apt-get --quiet download {package}",
            directory.display()
        );
        run(Command::new("sh").args(["-c", &download]))
            .with_context(|| format!("the package {package} can't be downloaded"))?;
        let archive: PathBuf =
            find(directory, &|name| name.ends_with(".deb")).context("no package came")?;
        run(Command::new("dpkg").arg("-x").arg(archive).arg(directory))
    }
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut apt = Command::new("apt-get");
    // Another apt may be at work, as after the machine's start.
    apt.args(["--quiet", "-o", "DPkg::Lock::Timeout=300"]);
    apt.args(arguments);
    run(apt.env("DEBIAN_FRONTEND", "noninteractive"))
}
