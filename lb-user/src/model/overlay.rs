use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use super::Mac;

/// The identifier of a virtual network: 0 ..= 2^24 - 1 (RFC 7348 §5, RFC 8926 §3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vni(u32);

impl Vni {
    /// The largest one.
    pub const MAX: u32 = (1 << 24) - 1;

    /// Returns the identifier of that number, if it fits.
    pub const fn new(vni: u32) -> Option<Self> {
        if vni > Self::MAX {
            None
        } else {
            Some(Self(vni))
        }
    }

    /// Returns the number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// What an overlay's header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OverlayHeader {
    /// VXLAN (RFC 7348).
    Vxlan,
    /// Geneve (RFC 8926).
    Geneve(GeneveOptions),
}

impl OverlayHeader {
    const VXLAN_PORT: NonZeroU16 = NonZeroU16::new(4789).unwrap();
    const GENEVE_PORT: NonZeroU16 = NonZeroU16::new(6081).unwrap();

    /// Returns `vxlan` or `geneve`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::Geneve(_) => "geneve",
        }
    }

    /// Returns the UDP destination port where none is given (IANA: vxlan, geneve).
    pub const fn default_port(self) -> NonZeroU16 {
        match self {
            Self::Vxlan => Self::VXLAN_PORT,
            Self::Geneve(_) => Self::GENEVE_PORT,
        }
    }

    /// Returns the header's length in bytes, with its options.
    pub fn header_len(&self) -> usize {
        8 + match self {
            Self::Vxlan => 0,
            Self::Geneve(options) => options.as_bytes().len(),
        }
    }
}

/// How a VM in an overlay network is reached: its packets go to the tunnel end of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overlay {
    /// What the header is.
    pub header: OverlayHeader,
    /// The virtual network.
    pub vni: Vni,
    /// The UDP port of tunnel ends.
    pub port: NonZeroU16,
    /// The VM's Ethernet address in the overlay. A service's own has none: each VM has another.
    pub mac: Option<Mac>,
    /// The Ethernet address that the VM sees frames come from; without it the sending interface's.
    pub source_mac: Option<Mac>,
}

impl fmt::Display for Overlay {
    /// `vxlan(vni 7, port 4789, mac 52:54:00:12:34:56)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (vni, port) = (self.vni.get(), self.port);
        write!(f, "{}(vni {vni}, port {port}", self.header.as_str())?;
        if let Some(mac) = self.mac {
            write!(f, ", mac {mac}")?;
        }
        if let Some(mac) = self.source_mac {
            write!(f, ", source_mac {mac}")?;
        }
        match self.header {
            OverlayHeader::Geneve(options) if !options.as_bytes().is_empty() => {
                write!(f, ", options {options}")?;
            }
            OverlayHeader::Vxlan | OverlayHeader::Geneve(_) => {}
        }
        f.write_str(")")
    }
}

/// The options of a Geneve header, as they lie in it: each a class of two bytes, a type (its first
/// bit says that who doesn't know it must drop the packet), a length in words of four bytes, and so
/// many words (RFC 8926 §3.5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GeneveOptions {
    bytes: [u8; Self::MAX],
    len: u8,
}

impl GeneveOptions {
    /// The longest that a template has room for, in bytes: beside the header's eight and an Ethernet
    /// header, in multiples of four.
    pub const MAX: usize = (lb_common::backend::OVERLAY_MAX - 8 - 14) / 4 * 4;
    /// No options.
    pub const NONE: Self = Self {
        bytes: [0; Self::MAX],
        len: 0,
    };

    /// Returns the options' bytes, a multiple of four.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// Returns whether one of them is critical.
    pub fn critical(&self) -> bool {
        let mut rest = self.as_bytes();
        while let [_, _, kind, words, more @ ..] = rest {
            if kind & 0x80 != 0 {
                return true;
            }
            rest = more.get(data_len(*words)..).unwrap_or_default();
        }
        false
    }
}

/// Returns how many bytes of data an option has, from the last byte of its header.
fn data_len(words: u8) -> usize {
    usize::from(words & 0x1f) * 4
}

impl fmt::Display for GeneveOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes()
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for GeneveOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GeneveOptions({self})")
    }
}

/// Why a text is not [`GeneveOptions`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeneveOptionsError {
    /// Not hexadecimal digits in pairs.
    #[error(
        "\"{0}\" is not hexadecimal: allowed are options as in 0102800100010002 (class 0102, type 80, one word of four bytes)"
    )]
    NotHex(String),
    /// Longer than there is room for.
    #[error("has {0} bytes: allowed is 0 to {max}", max = GeneveOptions::MAX)]
    TooLong(usize),
    /// An option has bits set that must be zero.
    #[error(
        "option {number} has length byte {byte:#04x}: allowed is 0x00 to 0x1f, in words of four bytes"
    )]
    Reserved {
        /// Which option, counted from 1.
        number: usize,
        /// The byte.
        byte: u8,
    },
    /// An option ends before it should.
    #[error("option {number} has {found} bytes, and should have {wanted}")]
    Cut {
        /// Which option, counted from 1.
        number: usize,
        /// How many bytes there are.
        found: usize,
        /// How many it needs.
        wanted: usize,
    },
}

impl FromStr for GeneveOptions {
    type Err = GeneveOptionsError;

    fn from_str(text: &str) -> Result<Self, GeneveOptionsError> {
        let not_hex = || GeneveOptionsError::NotHex(text.to_owned());
        let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !digits || !text.len().is_multiple_of(2) {
            return Err(not_hex());
        }
        let pairs = (0..text.len()).step_by(2);
        let bytes: Vec<u8> = pairs
            .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
            .collect::<Option<_>>()
            .ok_or_else(not_hex)?;
        let mut options = Self::NONE;
        let Some(room) = options.bytes.get_mut(..bytes.len()) else {
            return Err(GeneveOptionsError::TooLong(bytes.len()));
        };
        room.copy_from_slice(&bytes);
        options.len = bytes.len() as u8;
        let (mut rest, mut number) = (bytes.as_slice(), 1);
        while !rest.is_empty() {
            let found = rest.len();
            let cut = |wanted| GeneveOptionsError::Cut {
                number,
                found,
                wanted,
            };
            let [_, _, _, words, ..] = *rest else {
                return Err(cut(4));
            };
            if words & 0xe0 != 0 {
                return Err(GeneveOptionsError::Reserved {
                    number,
                    byte: words,
                });
            }
            let wanted = 4 + data_len(words);
            rest = rest.get(wanted..).ok_or_else(|| cut(wanted))?;
            number += 1;
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_read_as_they_are_written() {
        for (text, critical) in [
            ("", false),
            // OVN's: the logical ports that a packet comes from and goes to.
            ("0102800100010002", true),
            ("01020000", false),
            ("0103010100000000ffff8000", true),
        ] {
            let options: GeneveOptions = text.parse().unwrap();
            assert_eq!(options.to_string(), text);
            assert_eq!(options.as_bytes().len() * 2, text.len());
            assert_eq!(options.critical(), critical, "{text}");
        }
        let longest = format!("0102 8009 {}", "00".repeat(36)).replace(' ', "");
        assert_eq!(longest.len(), 2 * GeneveOptions::MAX);
        assert!(longest.parse::<GeneveOptions>().is_ok());
    }

    #[test]
    fn broken_options_say_where() {
        for (text, expected) in [
            ("0x0102", "is not hexadecimal"),
            ("010", "is not hexadecimal"),
            ("01ä0", "is not hexadecimal"),
            ("0102", "option 1 has 2 bytes, and should have 4"),
            ("01028001000100", "option 1 has 7 bytes, and should have 8"),
            (
                "0102800100010002010280020000",
                "option 2 has 6 bytes, and should have 12",
            ),
            ("01028021", "option 1 has length byte 0x21"),
            (&"00".repeat(44), "has 44 bytes: allowed is 0 to 40"),
        ] {
            let error = text.parse::<GeneveOptions>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_network_has_24_bits() {
        assert_eq!(Vni::new(Vni::MAX).map(Vni::get), Some(0xff_ffff));
        assert_eq!(Vni::new(Vni::MAX + 1), None);
    }
}
