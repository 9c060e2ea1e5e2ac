use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use super::duration::{duration, show_duration};

/// One thing that is wrong with what an operator wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct SpecError {
    /// The field, as in `service "web", backend "vm1", weight`.
    pub path: String,
    /// Its value, and what is allowed.
    pub message: String,
}

/// Collects what is wrong, so that an operator sees all of it at once.
#[derive(Debug)]
pub struct Checker {
    path: String,
    errors: Vec<SpecError>,
}

impl Checker {
    /// Returns a checker of something that is called `path`.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            errors: Vec::new(),
        }
    }

    /// Runs `check` on a part of it.
    pub fn within<T>(&mut self, part: &str, check: impl FnOnce(&mut Self) -> T) -> T {
        let len = self.path.len();
        if !self.path.is_empty() {
            self.path.push_str(", ");
        }
        self.path.push_str(part);
        let result = check(self);
        self.path.truncate(len);
        result
    }

    /// Notes that a field is wrong.
    pub fn error(&mut self, field: &str, message: impl Into<String>) {
        let path = match (self.path.as_str(), field) {
            (path, "") => path.to_owned(),
            ("", field) => field.to_owned(),
            (path, field) => format!("{path}, {field}"),
        };
        self.errors.push(SpecError {
            path,
            message: message.into(),
        });
    }

    /// Returns how many things are wrong so far.
    pub fn errors(&self) -> usize {
        self.errors.len()
    }

    /// Reads a field whose type says itself what is allowed.
    pub fn parse<T>(&mut self, field: &str, text: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        let result = text.parse();
        result
            .map_err(|error: T::Err| self.error(field, error.to_string()))
            .ok()
    }

    /// Reads an address.
    pub fn address(&mut self, field: &str, text: &str) -> Option<IpAddr> {
        match text.parse() {
            Ok(IpAddr::V6(address)) if address.to_ipv4_mapped().is_some() => {
                self.error(
                    field,
                    format!("\"{text}\" is an IPv4 address in IPv6 form: write the IPv4 address"),
                );
                None
            }
            Ok(address) => Some(address),
            Err(_) => {
                self.error(
                    field,
                    format!("\"{text}\" is not an address: allowed is IPv4 or IPv6, as 198.18.0.10 or 2001:db8::10"),
                );
                None
            }
        }
    }

    /// Checks that a number lies in a range.
    pub fn number<T>(&mut self, field: &str, value: i64, allowed: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i64> + PartialOrd + fmt::Display,
    {
        match T::try_from(value) {
            Ok(number) if allowed.contains(&number) => Some(number),
            _ => {
                let (low, high) = allowed.into_inner();
                self.error(
                    field,
                    format!("{value} is out of range: allowed is {low} to {high}"),
                );
                None
            }
        }
    }

    /// Reads a port number.
    pub fn port(&mut self, field: &str, value: i64) -> Option<NonZeroU16> {
        self.number(field, value, 1..=u16::MAX)
            .and_then(NonZeroU16::new)
    }

    /// Reads a duration and checks that it lies in a range; `default` if there is none.
    pub fn duration(
        &mut self,
        field: &str,
        text: Option<&str>,
        default: Duration,
        allowed: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let Some(text) = text else {
            return Some(default);
        };
        match duration(text) {
            Ok(value) if allowed.contains(&value) => Some(value),
            Ok(_) => {
                let (low, high) = (
                    show_duration(*allowed.start()),
                    show_duration(*allowed.end()),
                );
                self.error(
                    field,
                    format!("\"{text}\" is out of range: allowed is {low} to {high}"),
                );
                None
            }
            Err(error) => {
                self.error(field, error.to_string());
                None
            }
        }
    }

    /// Reads one of some words.
    pub fn word<T: Copy>(&mut self, field: &str, text: &str, words: &[(&str, T)]) -> Option<T> {
        let found = words.iter().find(|(word, _)| *word == text);
        if found.is_none() {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.error(
                field,
                format!("\"{text}\" is not known: allowed is {}", words.join(", ")),
            );
        }
        found.map(|(_, value)| *value)
    }

    /// Returns `value` if nothing was wrong.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Vec<SpecError>> {
        match value {
            Some(value) if self.errors.is_empty() => Ok(value),
            _ => Err(self.errors),
        }
    }
}
