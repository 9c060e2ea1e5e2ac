//! The loaded program and the model on the same case.

use std::collections::BTreeMap;
use std::fmt;

use super::Oracle;
use super::case::Case;
use super::clause::Walk;
use super::install::Installed;
use super::world::{Counters, Entry, Flow, Table};
use crate::program::XDP_DROP;

/// How many entries each flow table has room for: few, so that cases fill them.
pub const ROOM: usize = 4;
/// How many ticks a case may take: fresh entries must not get old meanwhile.
const TICKS: u32 = 60;

/// Something that the two do not agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// What became of a frame: verdict and bytes.
    Frame {
        /// Its number in the case.
        number: usize,
        /// Whether it was only explained.
        explained: bool,
        /// What the program did.
        program: (u32, Option<Vec<u8>>),
        /// What the model did.
        model: (u32, Option<Vec<u8>>),
    },
    /// The counters after all frames.
    Counters {
        /// Those of the program.
        program: Counters,
        /// Those of the model.
        model: Counters,
    },
    /// The flow tables after all frames: only what differs.
    Entries {
        /// Those of the program.
        program: Vec<Entry>,
        /// Those of the model.
        model: Vec<Entry>,
    },
}

impl Difference {
    /// Returns whether the other is of the same kind: what shrinking a case must keep.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    /// Returns what it is about, without addresses and numbers: most cases that differ in the same way
    /// have the same cause.
    #[must_use]
    pub fn sort(&self) -> String {
        let names = |one: &Counters, other: &Counters| {
            let more = one
                .iter()
                .filter(|(name, count)| other.get(*name) != Some(count));
            more.map(|(name, _)| name.replace(char::is_numeric, ""))
                .collect::<Vec<_>>()
        };
        match self {
            Self::Frame {
                explained,
                program,
                model,
                ..
            } => {
                let len = |frame: &Option<Vec<u8>>| frame.as_ref().map(Vec::len);
                let same_len = len(&program.1) == len(&model.1);
                format!("frame {explained} {} {} {same_len}", program.0, model.0)
            }
            Self::Counters { program, model } => {
                format!(
                    "counters {:?} {:?}",
                    names(program, model),
                    names(model, program)
                )
            }
            Self::Entries { program, model } => {
                let tables = |entries: &[Entry]| {
                    let tables = entries.iter().map(|entry| entry.table);
                    tables.collect::<Vec<_>>()
                };
                format!("entries {:?} {:?}", tables(program), tables(model))
            }
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame {
                number,
                explained,
                program,
                model,
            } => {
                let how = if *explained { "explained" } else { "run" };
                writeln!(f, "frame {number}, {how}:")?;
                for (who, (verdict, frame)) in [("program", program), ("model", model)] {
                    write!(f, "  {who}: verdict {verdict}, ")?;
                    for byte in frame.iter().flatten() {
                        write!(f, "{byte:02x}")?;
                    }
                    writeln!(f)?;
                }
                Ok(())
            }
            Self::Counters { program, model } => {
                writeln!(f, "counters:\n  program: {program:?}\n  model: {model:?}")
            }
            Self::Entries { program, model } => {
                writeln!(f, "entries:\n  program: {program:?}\n  model: {model:?}")
            }
        }
    }
}

/// What a comparison found, and which way the model took.
pub struct Compared {
    /// The first difference, if there is one.
    pub difference: Option<Difference>,
    /// The model's way.
    pub walk: Walk,
}

/// Runs a case through both. `explains` says whether the explaining program is asked about each
/// frame before.
///
/// # Errors
/// None; a harness that can't do its work panics.
pub fn compare(installed: &mut Installed, case: &Case, walk: Walk, explains: bool) -> Compared {
    // Other processes may take the time that the case needs: then it starts again.
    for _ in 0..20 {
        let compared = once(installed, case, walk.clone(), explains);
        if let Some(compared) = compared {
            return compared;
        }
    }
    panic!("a case takes longer than {TICKS} ticks");
}

fn once(installed: &mut Installed, case: &Case, walk: Walk, explains: bool) -> Option<Compared> {
    installed.install(&case.world);
    let mut model = Oracle::new(case.world.clone(), installed.key(), ROOM, walk);
    let mut counters = Counters::new();
    let mut difference = None;
    for (number, frame) in case.frames.iter().enumerate() {
        for explained in [true, false] {
            if explained && !explains {
                continue;
            }
            let program = if explained {
                let explained = installed.program.explain(frame);
                (explained.verdict, explained.frame)
            } else {
                installed.program.run(frame)
            };
            let outcome = if explained {
                model.explain(frame)
            } else {
                let outcome = model.packet(frame);
                for (name, by) in &outcome.counters {
                    *counters.entry(name.clone()).or_insert(0) += by;
                }
                outcome
            };
            let sent = (program.0 != XDP_DROP).then_some(program.1);
            let program = (program.0, sent);
            let model = (outcome.verdict, outcome.frame);
            if program != model && difference.is_none() {
                difference = Some(Difference::Frame {
                    number,
                    explained,
                    program,
                    model,
                });
            }
        }
    }
    let changes = installed.changes();
    if changes.ticks > TICKS {
        return None;
    }
    if difference.is_none() && changes.counters != counters {
        difference = Some(Difference::Counters {
            program: changes.counters,
            model: counters,
        });
    }
    if difference.is_none() && changes.entries != model.tables.entries {
        difference = Some(Difference::Entries {
            program: only(&changes.entries, &model.tables.entries),
            model: only(&model.tables.entries, &changes.entries),
        });
    }
    Some(Compared {
        difference,
        walk: model.walk,
    })
}

/// Returns the entries of one that the other has not.
fn only(
    one: &BTreeMap<(Table, Flow), Entry>,
    other: &BTreeMap<(Table, Flow), Entry>,
) -> Vec<Entry> {
    let differs = |(key, entry): &(&(Table, Flow), &Entry)| other.get(key) != Some(*entry);
    one.iter()
        .filter(differs)
        .map(|(_, entry)| *entry)
        .collect()
}
