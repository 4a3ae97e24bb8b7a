//! RFC 6962 §2.1: hashes of a Merkle tree, proofs of inclusion and of consistency, and their
//! verification. Pure: where the hashes of complete subtrees come from is the caller's.

use crate::record::chain::{self, Hash};

/// Longest path in a tree of 2^63 leaves.
pub const MAX_PATH: usize = 64;

/// Gives the hash of the complete subtree of `2^level` leaves at `index`; level 0 are leaves.
pub type Node<'a, E> = dyn FnMut(u32, u64) -> Result<Hash, E> + 'a;

/// Hash of a leaf's bytes.
pub fn leaf(bytes: &[u8]) -> Hash {
    chain::hash(&[0], &[bytes])
}

/// Hash of two subtrees.
pub fn parent(left: &Hash, right: &Hash) -> Hash {
    chain::hash(&[1], &[left, right])
}

/// Root of a tree without leaves.
pub fn empty() -> Hash {
    chain::hash(&[], &[])
}

/// The largest power of two below `n`, as an exponent; `n` is at least 2.
fn split(n: u64) -> u32 {
    63 - (n - 1).leading_zeros()
}

/// Hash of the leaves `from..from + n`; `from` is a multiple of the largest power of two in `n`.
fn range<E>(from: u64, n: u64, node: &mut Node<'_, E>) -> Result<Hash, E> {
    if n.is_power_of_two() {
        let level = n.trailing_zeros();
        return node(level, from >> level);
    }
    let k = split(n);
    let left = node(k, from >> k)?;
    let right = range(from + (1 << k), n - (1 << k), node)?;
    Ok(parent(&left, &right))
}

/// Root of the first `size` leaves.
pub fn root<E>(size: u64, node: &mut Node<'_, E>) -> Result<Hash, E> {
    if size == 0 { Ok(empty()) } else { range(0, size, node) }
}

/// Path from leaf `index` to the root of the first `size` leaves; `index < size`.
pub fn inclusion<E>(index: u64, size: u64, node: &mut Node<'_, E>) -> Result<Vec<Hash>, E> {
    let (mut from, mut n) = (0, size);
    let mut path = Vec::new();
    while n > 1 {
        let k = 1 << split(n);
        if index - from < k {
            path.push(range(from + k, n - k, node)?);
            n = k;
        } else {
            path.push(range(from, k, node)?);
            from += k;
            n -= k;
        }
    }
    path.reverse();
    Ok(path)
}

/// Proof that the first `old` leaves of a tree of `size` are the tree they were.
pub fn consistency<E>(old: u64, size: u64, node: &mut Node<'_, E>) -> Result<Vec<Hash>, E> {
    let mut path = Vec::new();
    if old == 0 || old >= size {
        return Ok(path);
    }
    let (mut from, mut n, mut m, mut whole) = (0, size, old, true);
    while m != n {
        let k = 1 << split(n);
        if m <= k {
            path.push(range(from + k, n - k, node)?);
            n = k;
        } else {
            path.push(range(from, k, node)?);
            from += k;
            n -= k;
            m -= k;
            whole = false;
        }
    }
    if !whole {
        path.push(range(from, n, node)?);
    }
    path.reverse();
    Ok(path)
}

/// Whether a leaf stands at `index` of the tree with this size and root (RFC 9162 §2.1.3.2).
pub fn includes(leaf: &Hash, index: u64, size: u64, path: &[Hash], root: &Hash) -> bool {
    if index >= size || path.len() > MAX_PATH {
        return false;
    }
    let mut hash = *leaf;
    let whole = climb(index, size - 1, path, |sibling, left| {
        hash = if left { parent(sibling, &hash) } else { parent(&hash, sibling) };
    });
    whole && hash == *root
}

/// Goes up from a node of a level whose last is `last`, and tells each sibling on the way and
/// whether it stands on the left. False when the path does not end at the root.
fn climb(mut at: u64, mut last: u64, path: &[Hash], mut step: impl FnMut(&Hash, bool)) -> bool {
    for sibling in path {
        if last == 0 {
            return false;
        }
        let left = at & 1 == 1 || at == last;
        step(sibling, left);
        while left && at & 1 == 0 && at != 0 {
            at >>= 1;
            last >>= 1;
        }
        at >>= 1;
        last >>= 1;
    }
    last == 0
}

/// Whether the tree `(size, root)` begins with the tree `(old, old_root)` (RFC 9162 §2.1.4.2).
pub fn extends(old: u64, old_root: &Hash, size: u64, root: &Hash, path: &[Hash]) -> bool {
    if old > size || path.len() > MAX_PATH {
        return false;
    }
    if old == size {
        return path.is_empty() && old_root == root;
    }
    if old == 0 {
        return path.is_empty() && *old_root == empty();
    }
    let (mut at, mut last) = (old - 1, size - 1);
    while at & 1 == 1 {
        at >>= 1;
        last >>= 1;
    }
    let mut rest = path;
    let first = if old.is_power_of_two() {
        *old_root
    } else {
        let Some((first, others)) = path.split_first() else { return false };
        rest = others;
        *first
    };
    let (mut before, mut now) = (first, first);
    let whole = climb(at, last, rest, |sibling, left| {
        if left {
            before = parent(sibling, &before);
            now = parent(sibling, &now);
        } else {
            now = parent(&now, sibling);
        }
    });
    whole && before == *old_root && now == *root
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::chain::hex;
    use std::convert::Infallible;

    /// Inputs and roots that implementations of RFC 6962 are commonly tested with.
    const LEAVES: [&[u8]; 8] = [
        b"",
        b"\x00",
        b"\x10",
        b"\x20\x21",
        b"\x30\x31",
        b"\x40\x41\x42\x43",
        b"\x50\x51\x52\x53\x54\x55\x56\x57",
        b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
    ];
    const ROOTS: [&str; 9] = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    /// Nodes computed from leaves each time.
    fn nodes(leaves: &[Hash]) -> impl FnMut(u32, u64) -> Result<Hash, Infallible> + '_ {
        fn at(leaves: &[Hash], level: u32, index: u64) -> Hash {
            if level == 0 {
                return leaves[index as usize];
            }
            parent(&at(leaves, level - 1, 2 * index), &at(leaves, level - 1, 2 * index + 1))
        }
        move |level, index| Ok(at(leaves, level, index))
    }

    #[test]
    fn roots_are_those_of_rfc_6962() {
        let leaves: Vec<Hash> = LEAVES.iter().map(|l| leaf(l)).collect();
        for (size, want) in ROOTS.iter().enumerate() {
            let Ok(got) = root(size as u64, &mut nodes(&leaves));
            assert_eq!(hex(&got), *want, "{size} leaves");
        }
        // The path of RFC 6962 §2.1.3's kind: leaf 0 of 8 goes by the hashes of 1, 2-3, 4-7.
        let Ok(path) = inclusion(0, 8, &mut nodes(&leaves));
        let path: Vec<String> = path.iter().map(|h| hex(h)).collect();
        assert_eq!(
            path,
            [
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ]
        );
    }

    #[test]
    fn every_proof_of_every_small_tree_holds_and_no_other() {
        let leaves: Vec<Hash> = (0..33u8).map(|i| leaf(&[i])).collect();
        let mut roots = Vec::new();
        for size in 0..=leaves.len() as u64 {
            let Ok(r) = root(size, &mut nodes(&leaves));
            roots.push(r);
        }
        for size in 1..=leaves.len() as u64 {
            let now = &roots[size as usize];
            for index in 0..size {
                let Ok(path) = inclusion(index, size, &mut nodes(&leaves));
                let hash = &leaves[index as usize];
                assert!(includes(hash, index, size, &path, now), "{index} of {size}");
                assert!(!includes(&leaf(b"x"), index, size, &path, now));
                assert!(!includes(hash, (index + 1) % (size + 1), size, &path, now) || size == 1);
                let mut long = path.clone();
                long.push(*hash);
                assert!(!includes(hash, index, size, &long, now));
                for at in 0..path.len() {
                    let mut bad = path.clone();
                    bad[at][0] ^= 1;
                    assert!(!includes(hash, index, size, &bad, now));
                }
            }
            for old in 0..=size {
                let Ok(path) = consistency(old, size, &mut nodes(&leaves));
                let before = &roots[old as usize];
                assert!(extends(old, before, size, now, &path), "{old} to {size}");
                assert!(!extends(old, &leaf(b"x"), size, now, &path), "{old} to {size}");
                for at in 0..path.len() {
                    let mut bad = path.clone();
                    bad[at][0] ^= 1;
                    assert!(!extends(old, before, size, now, &bad));
                }
            }
        }
    }
}
