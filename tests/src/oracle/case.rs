//! Cases: a world and the frames that come. They are kept as TOML, which a reader can follow.

use serde::{Deserialize, Serialize};

use super::world::World;

/// A world and the frames that come, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// What it is called.
    pub name: String,
    /// Why it is kept.
    pub why: String,
    /// The frames.
    #[serde(with = "hex")]
    pub frames: Vec<Vec<u8>>,
    /// What they meet.
    pub world: World,
}

impl Case {
    /// Returns it as TOML.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a case is TOML")
    }

    /// Reads TOML.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }
}

/// Frames as lines of hexadecimal digits.
mod hex {
    use std::fmt::Write as _;

    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub fn serialize<S: Serializer>(frames: &[Vec<u8>], to: S) -> Result<S::Ok, S::Error> {
        let line = |frame: &Vec<u8>| {
            frame.iter().fold(String::new(), |mut line, byte| {
                let _ = write!(line, "{byte:02x}");
                line
            })
        };
        let lines: Vec<_> = frames.iter().map(line).collect();
        lines.serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Vec<u8>>, D::Error> {
        let lines = Vec::<String>::deserialize(from)?;
        let frame = |line: &String| {
            let digits: Vec<_> = line.chars().filter(|c| !c.is_whitespace()).collect();
            let pairs = digits.chunks(2).map(|pair| {
                let pair: String = pair.iter().collect();
                u8::from_str_radix(&pair, 16)
                    .map_err(|error| D::Error::custom(format!("{pair:?}: {error}")))
            });
            pairs.collect()
        };
        lines.iter().map(frame).collect()
    }
}
