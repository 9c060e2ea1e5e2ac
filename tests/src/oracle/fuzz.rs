//! Looking for differences: random cases, and mutations of those that took new ways through the
//! model. The program can't be instrumented in the kernel, the model can.

use std::collections::HashSet;

use super::case::Case;
use super::clause::{Clause, Walk};
use super::compare::{Difference, compare};
use super::generate::random::Random;
use super::generate::{self, frame, mutate};
use super::install::Installed;
use super::shrink::shrink;

/// How many frames a case has at most.
const FRAMES: usize = 24;
/// How many cases are kept to be mutated.
const CORPUS: usize = 2048;
/// How many different ways are remembered.
const PATHS: usize = 1 << 20;

/// A run of the fuzzer.
#[derive(Default)]
pub struct Fuzz {
    random: Option<Random>,
    edges: Vec<u64>,
    paths: HashSet<u64>,
    corpus: Vec<Case>,
    /// How many frames were compared.
    pub frames: u64,
    /// How many cases.
    pub cases: u64,
}

/// A case that the program and the model do not agree on.
#[derive(Debug)]
pub struct Failure {
    /// The case, as small as it could be made.
    pub case: Case,
    /// What differs.
    pub difference: Difference,
}

impl Fuzz {
    /// Returns a run of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            random: Some(Random::new(seed)),
            ..Self::default()
        }
    }

    /// Returns how many edges the model took: pairs of an answer and the one before.
    #[must_use]
    pub fn edges(&self) -> u32 {
        self.edges.iter().map(|word| word.count_ones()).sum()
    }

    /// Returns how many different ways packets took through the model.
    #[must_use]
    pub fn paths(&self) -> usize {
        self.paths.len()
    }

    /// Returns how many cases are kept to be mutated.
    #[must_use]
    pub fn corpus(&self) -> usize {
        self.corpus.len()
    }

    /// Runs one case. Returns what differs, if anything does.
    pub fn step(&mut self, installed: &mut Installed) -> Option<Failure> {
        self.step_with(installed, None)
    }

    /// As [`Self::step`], with a model that lacks a clause.
    pub fn step_with(
        &mut self,
        installed: &mut Installed,
        left_out: Option<Clause>,
    ) -> Option<Failure> {
        let walk = || left_out.map_or_else(Walk::default, Walk::without);
        let case = self.next();
        let explains = self.random().one_in(4);
        self.cases += 1;
        self.frames += case.frames.len() as u64;
        let compared = compare(installed, &case, walk(), explains);
        if let Some(first) = compared.difference {
            if left_out.is_some() {
                return Some(Failure {
                    case,
                    difference: first,
                });
            }
            let mut last = first.clone();
            let case = shrink(&case, |smaller| {
                let difference = compare(installed, smaller, walk(), explains).difference;
                let Some(difference) = difference.filter(|other| other.is_like(&first)) else {
                    return false;
                };
                last = difference;
                true
            });
            return Some(Failure {
                case,
                difference: last,
            });
        }
        self.learn(case, &compared.walk);
        None
    }

    fn random(&mut self) -> &mut Random {
        self.random.get_or_insert_with(|| Random::new(0))
    }

    /// Returns a case: a new one, or one like another that took new ways.
    fn next(&mut self) -> Case {
        let kept = self.corpus.len();
        let random = self.random();
        let seed = random.word();
        if kept == 0 || random.one_in(3) {
            return generate::case(seed, 1 + random.below(FRAMES));
        }
        let (one, other) = (random.below(kept), random.below(kept));
        let other = self.corpus[other].clone();
        let mut case = self.corpus[one].clone();
        let random = self.random();
        case.name = format!("mutation {seed:x}");
        for _ in 0..1 + random.below(4) {
            vary(random, &mut case, &other);
        }
        case.frames.truncate(FRAMES);
        case
    }

    fn learn(&mut self, case: Case, walk: &Walk) {
        self.edges.resize(walk.edges().len(), 0);
        let mut is_new = false;
        for (all, taken) in self.edges.iter_mut().zip(walk.edges()) {
            is_new |= taken & !*all != 0;
            *all |= taken;
        }
        for path in walk.paths() {
            // A new way of known steps is worth it while there is room.
            let new_path = self.paths.len() < PATHS && self.paths.insert(*path);
            is_new |= new_path && self.corpus.len() < CORPUS;
        }
        if !is_new {
            return;
        }
        if self.corpus.len() < CORPUS {
            self.corpus.push(case);
        } else {
            let at = self.random().below(CORPUS);
            self.corpus[at] = case;
        }
    }
}

/// Changes a case a little, with pieces of another one.
fn vary(random: &mut Random, case: &mut Case, other: &Case) {
    let at = random.below(case.frames.len().max(1));
    match random.below(8) {
        0..3 => {
            if let Some(frame) = case.frames.get_mut(at) {
                mutate::mutate(random, frame);
            }
        }
        3 => {
            let frame = frame::frame(random, &case.world);
            case.frames.insert(at.min(case.frames.len()), frame);
        }
        4 => {
            if let Some(frame) = case.frames.get(at).cloned() {
                // Once more: a flow's second packet.
                case.frames.insert(at, frame);
            }
        }
        5 => case.frames.extend(other.frames.iter().take(4).cloned()),
        6 => {
            let count = case.world.backends.len();
            if count > 0 {
                let backend = &mut case.world.backends[random.below(count)];
                backend.alive = random.one_in(2);
                backend.accepts = backend.alive && random.one_in(2);
                backend.generation = random.one_of(&[0, 1]);
            }
        }
        _ => {
            let count = case.world.entries.len();
            if count > 0 {
                let entry = &mut case.world.entries[random.below(count)];
                match random.below(5) {
                    0 => entry.closed = !entry.closed,
                    1 => entry.confirmed = !entry.confirmed,
                    2 => entry.reopened = !entry.reopened,
                    3 => entry.age = random.one_of(&[0, 1, 100, 5000]),
                    _ => entry.opened = entry.opened.wrapping_add(1),
                }
            }
        }
    }
}
