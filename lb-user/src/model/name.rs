use std::fmt;
use std::str::FromStr;

/// The name of a service or a backend: 1 to 63 of the characters `a-z A-Z 0-9 . _ -`, the first
/// one a letter or a digit. So it fits in a path, a metric label and a file name as it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// Why a text is not a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a name: allowed are 1 to 63 letters, digits, '.', '_' and '-', beginning with a letter or digit"
)]
pub struct NameError(String);

impl Name {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let first = text
            .chars()
            .next()
            .is_some_and(|c| c.is_ascii_alphanumeric());
        if first && text.len() <= 63 && text.chars().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError(text.to_owned()))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_in_paths_and_labels() {
        for good in ["web", "vm-1.rack_2", "0", &"a".repeat(63)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "-web", ".", "a b", "ä", "a/b", &"a".repeat(64)] {
            let error = bad.parse::<Name>().expect_err(bad);
            assert!(error.to_string().contains(bad));
        }
    }
}
