//! Files of packages that are unpacked and not installed.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// Returns the first file below `directory` whose name fits.
pub fn find(directory: &Path, fits: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    for entry in fs::read_dir(directory).ok()?.flatten() {
        let path = entry.path();
        let found = if path.is_dir() {
            find(&path, fits)
        } else {
            let name = path.file_name().and_then(OsStr::to_str);
            name.is_some_and(fits).then_some(path)
        };
        if found.is_some() {
            return found;
        }
    }
    None
}
