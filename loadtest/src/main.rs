//! Load tool and overhead harness for Tidegate.
fn main() {}
