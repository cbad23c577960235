//! Where things are in a YAML text: an ordered tree of keys with their places, and nothing of the values.
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_yaml::Spanned;

/// Line and column, from 1.
pub(super) type Place = (u64, u64);

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// Anything without parts.
    Scalar,
    /// Items with the places of their values.
    List(Vec<(Place, Node)>),
    /// Members with the places of their keys.
    Map(Vec<(String, Place, Node)>),
}

impl Node {
    /// The tree of a text; `None` if it is not YAML.
    pub(super) fn read(text: &str) -> Option<Self> {
        serde_yaml::from_str(text).ok()
    }

    /// Place of the deepest part of `path` that is written.
    pub(super) fn place(&self, path: &str) -> Option<Place> {
        let (mut node, mut place) = (self, None);
        for segment in segments(path) {
            let found = match (node, &segment) {
                (Self::Map(members), Segment::Key(key)) => {
                    members.iter().find(|(name, ..)| name == key).map(|(_, at, node)| (*at, node))
                }
                (Self::List(items), Segment::Index(index)) => items.get(*index).map(|(at, node)| (*at, node)),
                _ => None,
            };
            let Some((at, child)) = found else { break };
            (node, place) = (child, Some(at));
        }
        place
    }

    /// Path of the last key or item that begins at or before `place`.
    pub(super) fn path_at(&self, place: Place) -> String {
        let mut best = (String::new(), (0, 0));
        self.walk("", &mut |path, at| {
            if at <= place && at >= best.1 {
                best = (path.to_owned(), at);
            }
        });
        best.0
    }

    fn walk(&self, prefix: &str, each: &mut impl FnMut(&str, Place)) {
        match self {
            Self::Scalar => {}
            Self::List(items) => {
                for (index, (at, node)) in items.iter().enumerate() {
                    let path = format!("{prefix}[{index}]");
                    each(&path, *at);
                    node.walk(&path, each);
                }
            }
            Self::Map(members) => {
                for (name, at, node) in members {
                    let path = join(prefix, name);
                    each(&path, *at);
                    node.walk(&path, each);
                }
            }
        }
    }
}

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    Key(String),
    Index(usize),
}

/// `prefix.name`; a name with dots or brackets is quoted.
pub(super) fn join(prefix: &str, name: &str) -> String {
    let is_plain = !name.is_empty() && !name.contains(['.', '[', ']', '"']);
    let name = if is_plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "")) };
    if prefix.is_empty() { name } else { format!("{prefix}.{name}") }
}

/// Steps of a path as [`join`] and `[n]` make it.
pub(super) fn segments(path: &str) -> Vec<Segment> {
    let (mut steps, mut rest) = (Vec::new(), path);
    while !rest.is_empty() {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        let (step, tail) = if let Some(quoted) = rest.strip_prefix('"') {
            let (name, tail) = quoted.split_once('"').unwrap_or((quoted, ""));
            (Segment::Key(name.to_owned()), tail)
        } else if let Some(index) = rest.strip_prefix('[') {
            let (index, tail) = index.split_once(']').unwrap_or((index, ""));
            (Segment::Index(index.parse().unwrap_or(usize::MAX)), tail)
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            let (name, tail) = rest.split_at(end);
            (Segment::Key(name.to_owned()), tail)
        };
        steps.push(step);
        rest = tail;
    }
    steps
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

macro_rules! scalars {
    ($($name:ident: $type:ty),*) => {
        $(fn $name<E>(self, _: $type) -> Result<Node, E> {
            Ok(Node::Scalar)
        })*
    };
}

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }

    scalars! { visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_i128: i128, visit_u128: u128, visit_f64: f64,
    visit_str: &str, visit_bytes: &[u8] }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Node::Scalar)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<Spanned<Node>>()? {
            list.push(((item.referenced.line(), item.referenced.column()), item.value));
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = members.next_key::<Spanned<String>>()? {
            let at = (key.referenced.line(), key.referenced.column());
            map.push((key.value, at, members.next_value()?));
        }
        Ok(Node::Map(map))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEXT: &str = "a:\n  b: 1\n  \"c.d\":\n    - x\n    - url: 2\n      z: {k: v}\ne: [1, {f: 2}]\n";

    #[test]
    fn every_part_is_found() {
        let node = Node::read(TEXT).unwrap();
        for (path, place) in [
            ("a", (1, 1)),
            ("a.b", (2, 3)),
            ("a.\"c.d\"", (3, 3)),
            ("a.\"c.d\"[0]", (4, 7)),
            ("a.\"c.d\"[1].url", (5, 7)),
            ("a.\"c.d\"[1].z.k", (6, 11)),
            ("a.b.missing", (2, 3)),
            ("e[1].f", (7, 9)),
        ] {
            assert_eq!(node.place(path), Some(place), "{path}");
        }
        assert_eq!(node.place("missing"), None);
        assert_eq!(node.path_at((6, 14)), "a.\"c.d\"[1].z.k");
        assert_eq!(node.path_at((2, 6)), "a.b");
    }
}
