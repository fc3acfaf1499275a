//! Which of many ranges a value lies in, in time that grows with the answer and the logarithm of
//! their number: a treap by lower ends, each node knowing the highest upper end below it.

use super::keys::{Key, Postings};

/// A place between values: before or after `key`. Ranges are half open between edges, and a value is
/// the edge before it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Edge {
    pub(super) key: Key,
    pub(super) after: bool,
}

/// The values from `low` to `high`; None where there is no such end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) low: Option<Edge>,
    pub(super) high: Option<Edge>,
}

impl Span {
    pub(super) fn intersect(self, other: Span) -> Span {
        let high = match (self.high, other.high) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        // Nothing sorts before everything, as it should at the low end.
        Span { low: self.low.max(other.low), high }
    }

    fn holds(&self, at: &Edge) -> bool {
        self.low.as_ref().is_none_or(|low| low <= at) && self.high.as_ref().is_none_or(|high| at < high)
    }

    fn order(&self, other: &Span) -> std::cmp::Ordering {
        self.low.cmp(&other.low).then_with(|| self.high.cmp(&other.high))
    }
}

#[derive(Debug, Default)]
pub(super) struct Ranges {
    root: Tree,
    /// State of the generator of priorities: the same calls make the same tree.
    state: u64,
}

type Tree = Option<Box<Node>>;

#[derive(Debug)]
struct Node {
    span: Span,
    postings: Postings,
    /// The highest upper end in the tree below, this node included; None is without end.
    reach: Option<Edge>,
    priority: u64,
    left: Tree,
    right: Tree,
}

impl Node {
    fn settle(mut self: Box<Node>) -> Box<Node> {
        let mut reach = self.span.high.clone();
        for child in [&self.left, &self.right].into_iter().flatten() {
            reach = match (reach, &child.reach) {
                (Some(a), Some(b)) => Some(if a < *b { b.clone() } else { a }),
                _ => None,
            };
        }
        self.reach = reach;
        self
    }
}

impl Ranges {
    pub(super) fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// The postings of exactly that range, made where there are none.
    pub(super) fn entry(&mut self, span: &Span) -> &mut Postings {
        let found = find(&mut self.root, span).is_some();
        if !found {
            // splitmix64.
            self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut priority = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            priority = (priority ^ (priority >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            let (below, above) = split(self.root.take(), span);
            let node = Box::new(Node {
                span: span.clone(),
                postings: Postings::default(),
                reach: span.high.clone(),
                priority: priority ^ (priority >> 31),
                left: None,
                right: None,
            });
            self.root = merge(merge(below, Some(node)), above);
        }
        find(&mut self.root, span).expect("the range was there or has been added")
    }

    pub(super) fn get_mut(&mut self, span: &Span) -> Option<&mut Postings> {
        find(&mut self.root, span)
    }

    pub(super) fn remove(&mut self, span: &Span) {
        self.root = without(self.root.take(), span);
    }

    /// Calls `found` for each range that the value lies in.
    pub(super) fn at(&self, key: Key, found: &mut impl FnMut(&Postings)) {
        visit(&self.root, &Edge { key, after: false }, found);
    }
}

fn visit(tree: &Tree, at: &Edge, found: &mut impl FnMut(&Postings)) {
    let Some(node) = tree else { return };
    if node.reach.as_ref().is_some_and(|reach| reach <= at) {
        return;
    }
    visit(&node.left, at, found);
    if node.span.low.as_ref().is_none_or(|low| low <= at) {
        if node.span.holds(at) {
            found(&node.postings);
        }
        visit(&node.right, at, found);
    }
}

fn find<'a>(tree: &'a mut Tree, span: &Span) -> Option<&'a mut Postings> {
    let mut tree = tree;
    while let Some(node) = tree {
        match span.order(&node.span) {
            std::cmp::Ordering::Less => tree = &mut node.left,
            std::cmp::Ordering::Greater => tree = &mut node.right,
            std::cmp::Ordering::Equal => return Some(&mut node.postings),
        }
    }
    None
}

/// Into what is below `span` and what is not.
fn split(tree: Tree, span: &Span) -> (Tree, Tree) {
    let Some(mut node) = tree else { return (None, None) };
    if node.span.order(span).is_lt() {
        let (below, above) = split(node.right.take(), span);
        node.right = below;
        (Some(node.settle()), above)
    } else {
        let (below, above) = split(node.left.take(), span);
        node.left = above;
        (below, Some(node.settle()))
    }
}

/// All of `below` is below all of `above`.
fn merge(below: Tree, above: Tree) -> Tree {
    match (below, above) {
        (None, tree) | (tree, None) => tree,
        (Some(mut below), Some(mut above)) => {
            if below.priority >= above.priority {
                below.right = merge(below.right.take(), Some(above));
                Some(below.settle())
            } else {
                above.left = merge(Some(below), above.left.take());
                Some(above.settle())
            }
        }
    }
}

fn without(tree: Tree, span: &Span) -> Tree {
    let mut node = tree?;
    match span.order(&node.span) {
        std::cmp::Ordering::Less => node.left = without(node.left.take(), span),
        std::cmp::Ordering::Greater => node.right = without(node.right.take(), span),
        std::cmp::Ordering::Equal => return merge(node.left.take(), node.right.take()),
    }
    Some(node.settle())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::keys::Posting;
    use super::*;
    use crate::domain::Sid;

    fn edge() -> impl Strategy<Value = Option<Edge>> {
        prop::option::weighted(
            0.8,
            (0i64..12, any::<bool>()).prop_map(|(key, after)| Edge { key: Key::Number(key), after }),
        )
    }

    proptest! {
        #[test]
        fn finds_what_a_scan_finds(
            spans in prop::collection::vec((edge(), edge()), 0..40),
            gone in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let spans: Vec<Span> = spans.into_iter().map(|(low, high)| Span { low, high }).collect();
            let mut ranges = Ranges::default();
            for (sid, span) in (0..).zip(&spans) {
                ranges.entry(span).insert(Posting { sid: Sid(sid), residual: None });
            }
            let mut kept: Vec<Span> = spans.clone();
            if !spans.is_empty() {
                for index in gone {
                    let span = spans[index.index(spans.len())].clone();
                    ranges.remove(&span);
                    kept.retain(|other| *other != span);
                }
            }
            for value in -1..13 {
                let at = Edge { key: Key::Number(value), after: false };
                let mut found = 0;
                ranges.at(Key::Number(value), &mut |postings| found += postings.iter().count());
                prop_assert_eq!(found, kept.iter().filter(|span| span.holds(&at)).count());
            }
            kept.iter().for_each(|span| ranges.remove(span));
            prop_assert!(ranges.is_empty());
        }
    }
}
