//! Cases that once ended differently in the program and in the model, one file each.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::case::Case;
use super::fuzz::Failure;

/// Returns where they are.
#[must_use]
pub fn directory() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/regressions"))
}

/// Keeps a case under a name. Returns its file.
///
/// # Errors
/// If the file can't be written.
pub fn keep(name: &str, failure: &Failure) -> io::Result<PathBuf> {
    let mut case = failure.case.clone();
    name.clone_into(&mut case.name);
    // Who mends it says why it is kept.
    case.why = format!(
        "found by the fuzzer, not explained yet: {}",
        failure.difference
    );
    fs::create_dir_all(directory())?;
    let path = directory().join(format!("{name}.toml"));
    fs::write(&path, case.to_toml())?;
    Ok(path)
}

/// Returns all of them, in the order of their names.
///
/// # Panics
/// If one can't be read: the message names the file.
#[must_use]
pub fn all() -> Vec<Case> {
    let files = fs::read_dir(directory()).expect("the directory of regressions");
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "toml"));
    paths.sort();
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).expect("a file");
        let case = Case::from_toml(&text);
        case.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    paths.iter().map(read).collect()
}
