//! Every world that can be reached, breadth first: the first failure found is one of the shortest.

use std::collections::{HashSet, VecDeque};

use super::actions::Action;
use super::world::{Bounds, World};

#[derive(Debug, Default)]
pub struct Found {
    /// Worlds that differ.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// Worlds in which nothing more happens by itself.
    pub ends: usize,
    /// The longest of the shortest ways to a world.
    pub depth: usize,
    pub failure: Option<Failure>,
}

#[derive(Debug)]
pub struct Failure {
    pub why: String,
    /// What leads there.
    pub way: Vec<Action>,
}

/// Explores until everything is known, or something fails.
pub fn explore(bounds: Bounds) -> Found {
    let mut found = Found::default();
    let mut known = HashSet::new();
    // How each world was reached: its predecessor's place in this list, and the step.
    let mut ways: Vec<(usize, Option<Action>)> = vec![(0, None)];
    let first = World::new(bounds);
    let digest = first.digest();
    known.insert(digest);
    let mut frontier = VecDeque::from([(0, 0, digest, first)]);
    while let Some((place, depth, digest, world)) = frontier.pop_front() {
        found.states += 1;
        found.depth = depth;
        let mut at_an_end = true;
        for action in world.chosen() {
            let mut next = world.clone();
            next.act(action);
            found.steps += 1;
            if let Some(why) = next.failure.take() {
                let mut way = way(&ways, place);
                way.push(action);
                found.failure = Some(Failure { why, way });
                return found;
            }
            let reached = next.digest();
            at_an_end &= action.is_disturbance() || reached == digest;
            if known.insert(reached) {
                ways.push((place, Some(action)));
                frontier.push_back((ways.len() - 1, depth + 1, reached, next));
            }
        }
        if at_an_end {
            found.ends += 1;
            let mut end = world;
            end.check_end();
            if let Some(why) = end.failure {
                found.failure = Some(Failure { why, way: way(&ways, place) });
                return found;
            }
        }
    }
    found
}

fn way(ways: &[(usize, Option<Action>)], mut place: usize) -> Vec<Action> {
    let mut way = Vec::new();
    while let (before, Some(action)) = ways[place] {
        way.push(action);
        place = before;
    }
    way.reverse();
    way
}
