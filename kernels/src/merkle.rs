//! Merkle trees as Bitcoin builds them: SHA-256d of two concatenated hashes, the last one paired with itself on odd levels.
use crate::sha256d::scalar::{hash_pair, sha256d};
use otedama_primitives::Hash256;

/// Root over a leaf and its siblings, leaf to root, all in internal order; the leaf is always the left one, as the coinbase is.
pub fn root_from_branch(leaf: Hash256, branch: &[Hash256]) -> Hash256 {
    branch.iter().fold(leaf, |node, sibling| hash_pair(&node, sibling))
}

/// Siblings of the first leaf (the coinbase, whose hash is not known yet), leaf to root; `others` are the txids of the other transactions in block order.
pub fn branch_of_first(others: &[Hash256]) -> Vec<Hash256> {
    let mut branch = Vec::new();
    // `level` holds all nodes but the first, whose place is taken by the unknown one.
    let mut level = others.to_vec();
    while !level.is_empty() {
        let mut above = Vec::with_capacity(level.len() / 2);
        let mut nodes = level.iter();
        if let Some(sibling) = nodes.next() {
            branch.push(*sibling);
        }
        while let Some(left) = nodes.next() {
            let right = nodes.next().unwrap_or(left);
            above.push(hash_pair(left, right));
        }
        level = above;
    }
    branch
}

/// Root over all leaves, the slow and obvious way.
pub fn root(leaves: &[Hash256]) -> Option<Hash256> {
    let mut level = leaves.to_vec();
    while level.len() > 1 {
        level = level.chunks(2).map(|pair| hash_pair(&pair[0], pair.last().unwrap_or(&pair[0]))).collect();
    }
    level.first().copied()
}

/// Transaction id of a stripped transaction.
pub fn txid(stripped: &[u8]) -> Hash256 {
    sha256d(stripped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branch_and_tree_agree_for_every_count() {
        let leaf = |n: usize| sha256d(&n.to_le_bytes());
        for count in 1..=70 {
            let leaves: Vec<_> = (0..count).map(leaf).collect();
            let branch = branch_of_first(&leaves[1..]);
            assert_eq!(Some(root_from_branch(leaves[0], &branch)), root(&leaves), "{count} leaves");
        }
        assert_eq!(root(&[]), None);
    }
}
