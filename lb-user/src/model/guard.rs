use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

/// A prefix of source addresses. Nothing stands behind its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

/// Why a text is not a [`Prefix`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// It is none at all.
    #[error(
        "\"{0}\" is not a prefix: allowed is an IPv4 or IPv6 address with or without a length, as 198.18.0.0/15 or 2001:db8::1"
    )]
    Nonsense(String),
    /// It is of the other family, in disguise.
    #[error("\"{0}\" is an IPv4 address in IPv6 form: write the IPv4 address")]
    Mapped(String),
    /// It is too long.
    #[error("\"{text}\" has the prefix length {len}: allowed is 0 to {max}")]
    Length {
        /// The text.
        text: String,
        /// The length.
        len: String,
        /// The longest that is allowed.
        max: u8,
    },
    /// It has bits behind its length.
    #[error("\"{text}\" has bits behind its prefix length: allowed is {wanted}")]
    Bits {
        /// The text.
        text: String,
        /// The same without them.
        wanted: Prefix,
    },
}

impl Prefix {
    /// Returns the first `len` bits of an address; nothing if it doesn't have as many.
    pub fn of(address: IpAddr, len: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) if len <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                IpAddr::V4((v4.to_bits() & mask).into())
            }
            IpAddr::V6(v6) if len <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                IpAddr::V6((v6.to_bits() & mask).into())
            }
            IpAddr::V4(_) | IpAddr::V6(_) => return None,
        };
        Some(Self { address, len })
    }

    /// Returns its first address.
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// Returns its length in bits.
    pub const fn bits(self) -> u8 {
        self.len
    }

    /// Returns whether it is one of IPv4.
    pub const fn is_ipv4(self) -> bool {
        self.address.is_ipv4()
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let nonsense = || PrefixError::Nonsense(text.to_owned());
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| nonsense())?;
        if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
            return Err(PrefixError::Mapped(text.to_owned()));
        }
        let max = if address.is_ipv4() { 32 } else { 128 };
        let digits = |len: &&str| !len.is_empty() && len.bytes().all(|b| b.is_ascii_digit());
        let number = match len {
            None => Some(max),
            Some(len) => Some(len).filter(digits).and_then(|len| len.parse().ok()),
        };
        let Some(prefix) = number.and_then(|len| Self::of(address, len)) else {
            return Err(PrefixError::Length {
                text: text.to_owned(),
                len: len.unwrap_or_default().to_owned(),
                max,
            });
        };
        if prefix.address != address {
            return Err(PrefixError::Bits {
                text: text.to_owned(),
                wanted: prefix,
            });
        }
        Ok(prefix)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

/// Prefixes in order, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefixes(Arc<[Prefix]>);

impl Prefixes {
    /// Returns them in order.
    pub fn as_slice(&self) -> &[Prefix] {
        &self.0
    }

    /// Returns those of one family.
    pub fn of_family(&self, v4: bool) -> &[Prefix] {
        let (first, second) = self
            .0
            .split_at(self.0.partition_point(|prefix| prefix.is_ipv4()));
        if v4 { first } else { second }
    }

    /// Returns the longest one that contains an address.
    pub fn longest(&self, source: IpAddr) -> Option<Prefix> {
        let of_family = self.of_family(source.is_ipv4());
        let max = if source.is_ipv4() { 32 } else { 128 };
        (0..=max).rev().find_map(|len| {
            let prefix = Prefix::of(source, len)?;
            of_family.binary_search(&prefix).ok().map(|_| prefix)
        })
    }
}

impl FromIterator<Prefix> for Prefixes {
    fn from_iter<T: IntoIterator<Item = Prefix>>(prefixes: T) -> Self {
        let mut prefixes: Vec<Prefix> = prefixes.into_iter().collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        Self(prefixes.into())
    }
}

/// What a list does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ListKind {
    /// It lets sources in, and keeps out all others.
    Allow,
    /// It keeps sources out.
    Deny,
}

impl ListKind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Allow, Self::Deny];

    /// Returns `allow` or `deny`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// Who is let in: to one service, or to all. The longest prefix that contains a source decides,
/// deny wins between two of one length, and a source that none contains is let in unless there is
/// an allow list.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Guard {
    /// Sources that are let in; nothing for all.
    pub allow: Option<Prefixes>,
    /// Sources that are kept out.
    pub deny: Option<Prefixes>,
}

/// What a guard says of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// It is let in, by this prefix if any says so.
    LetIn(Option<Prefix>),
    /// This prefix keeps it out.
    Denied(Prefix),
    /// There is an allow list, which doesn't have it.
    NotAllowed,
}

impl Guard {
    /// Returns a list of it.
    pub const fn list(&self, kind: ListKind) -> Option<&Prefixes> {
        match kind {
            ListKind::Allow => self.allow.as_ref(),
            ListKind::Deny => self.deny.as_ref(),
        }
    }

    /// Returns a place of a list.
    pub const fn list_mut(&mut self, kind: ListKind) -> &mut Option<Prefixes> {
        match kind {
            ListKind::Allow => &mut self.allow,
            ListKind::Deny => &mut self.deny,
        }
    }

    /// Judges a source.
    pub fn judge(&self, source: IpAddr) -> Judged {
        let longest = |list: &Option<Prefixes>| list.as_ref().and_then(|l| l.longest(source));
        match (longest(&self.allow), longest(&self.deny)) {
            (Some(allow), Some(deny)) if allow.bits() > deny.bits() => Judged::LetIn(Some(allow)),
            (_, Some(deny)) => Judged::Denied(deny),
            (Some(allow), None) => Judged::LetIn(Some(allow)),
            (None, None) if self.allow.is_some() => Judged::NotAllowed,
            (None, None) => Judged::LetIn(None),
        }
    }

    /// Returns whether it lets nobody in, which nobody wants: an allow list without a prefix.
    /// `v4` says of which family the sources are, if not of both.
    pub fn is_shut(&self, v4: Option<bool>) -> bool {
        let families = [true, false].into_iter();
        let mut families = families.filter(|family| v4.is_none_or(|v4| v4 == *family));
        self.allow
            .as_ref()
            .is_some_and(|allow| families.all(|v4| allow.of_family(v4).is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefixes(texts: &[&str]) -> Prefixes {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_prefix_reads_as_it_is_written() {
        for text in ["0.0.0.0/0", "198.18.0.0/15", "::/0", "2001:db8::/32"] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
        assert_eq!(
            "198.18.0.1".parse::<Prefix>().unwrap().to_string(),
            "198.18.0.1/32"
        );
        for (bad, why) in [
            ("", "\"\" is not a prefix: allowed is an IPv4 or IPv6"),
            ("198.18.0/24", "is not a prefix"),
            ("198.18.0.0/", "has the prefix length : allowed is 0 to 32"),
            ("198.18.0.0/+8", "has the prefix length +8"),
            ("198.18.0.0/33", "length 33: allowed is 0 to 32"),
            ("2001:db8::/129", "length 129: allowed is 0 to 128"),
            (
                "198.18.0.1/15",
                "bits behind its prefix length: allowed is 198.18.0.0/15",
            ),
            (
                "::ffff:198.18.0.1",
                "is an IPv4 address in IPv6 form: write the IPv4 address",
            ),
        ] {
            let error = bad.parse::<Prefix>().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_rule_as_a_table() {
        let guard = |allow: Option<&[&str]>, deny: &[&str]| Guard {
            allow: allow.map(prefixes),
            deny: Some(prefixes(deny)),
        };
        let both = guard(
            Some(&["198.18.0.0/15", "198.19.5.0/24", "198.19.6.0/24"]),
            &["198.19.0.0/16", "198.19.6.0/24", "198.18.1.1/32"],
        );
        let allow = |text: &str| Judged::LetIn(Some(text.parse().unwrap()));
        let deny = |text: &str| Judged::Denied(text.parse().unwrap());
        for (source, want) in [
            ("198.18.1.2", allow("198.18.0.0/15")),
            ("198.18.1.1", deny("198.18.1.1/32")),
            ("198.19.1.1", deny("198.19.0.0/16")),
            ("198.19.5.9", allow("198.19.5.0/24")),
            ("198.19.6.9", deny("198.19.6.0/24")),
            ("203.0.113.1", Judged::NotAllowed),
            ("2001:db8::1", Judged::NotAllowed),
        ] {
            assert_eq!(both.judge(source.parse().unwrap()), want, "{source}");
        }
        let open = guard(None, &["::/0"]);
        assert_eq!(
            open.judge("203.0.113.1".parse().unwrap()),
            Judged::LetIn(None)
        );
        assert_eq!(open.judge("2001:db8::1".parse().unwrap()), deny("::/0"));
    }

    #[test]
    fn an_allow_list_without_a_prefix_shuts_everybody_out() {
        let guard = |allow: &[&str]| Guard {
            allow: Some(prefixes(allow)),
            deny: None,
        };
        assert!(!Guard::default().is_shut(None));
        assert!(guard(&[]).is_shut(None));
        assert!(guard(&["198.18.0.0/15"]).is_shut(Some(false)));
        assert!(!guard(&["198.18.0.0/15"]).is_shut(Some(true)));
        assert!(!guard(&["198.18.0.0/15"]).is_shut(None));
    }

    fn prefix() -> impl Strategy<Value = Prefix> {
        // Few addresses and all lengths, so that prefixes contain one another.
        (0_u32..64, 0_u8..=32).prop_map(|(bits, len)| {
            let address = std::net::Ipv4Addr::from_bits(0xc612_0000 | bits.wrapping_mul(0x1041));
            Prefix::of(address.into(), len).unwrap()
        })
    }

    proptest! {
        #[test]
        fn the_longest_prefix_is_found(prefixes in prop::collection::vec(prefix(), 0..40), bits: u16) {
            let source = std::net::Ipv4Addr::from_bits(0xc612_0000 | u32::from(bits));
            let mut containing: Vec<Prefix> = prefixes
                .iter()
                .filter(|p| Prefix::of(source.into(), p.bits()) == Some(**p))
                .copied()
                .collect();
            containing.sort_by_key(|p| p.bits());
            let list: Prefixes = prefixes.into_iter().collect();
            prop_assert_eq!(list.longest(source.into()), containing.pop());
        }
    }
}
