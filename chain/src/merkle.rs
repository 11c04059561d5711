//! Merkle trees as Bitcoin builds them: SHA-256d over pairs, the last of an odd row paired with itself.
use otedama_primitives::Hash256;
use sha2::{Digest, Sha256};

/// SHA-256 of SHA-256 of `bytes`.
pub fn sha256d(bytes: &[u8]) -> Hash256 {
    Hash256(Sha256::digest(Sha256::digest(bytes)).into())
}

/// The node above `left` and `right`.
pub fn parent(left: &Hash256, right: &Hash256) -> Hash256 {
    let mut both = [0u8; 64];
    both[..32].copy_from_slice(&left.0);
    both[32..].copy_from_slice(&right.0);
    sha256d(&both)
}

/// Siblings of the coinbase from leaf to root, given the txids of all other transactions in block order. Empty for a block of the coinbase alone.
pub fn branch(txids: &[Hash256]) -> Vec<Hash256> {
    // The row without its first entry: that one hangs on the coinbase and is not known yet.
    let mut row = txids.to_vec();
    let mut siblings = Vec::new();
    while let Some((&sibling, rest)) = row.split_first() {
        siblings.push(sibling);
        row = rest.chunks(2).map(|pair| parent(&pair[0], pair.last().unwrap_or(&pair[0]))).collect();
    }
    siblings
}

/// Merkle root of a block whose coinbase has `txid`, by the coinbase's siblings.
pub fn root_by_branch(txid: Hash256, branch: &[Hash256]) -> Hash256 {
    branch.iter().fold(txid, |node, sibling| parent(&node, sibling))
}

/// The `OP_RETURN` script that commits to the witnesses of a block (BIP141), the reserved value being 32 zero bytes.
/// `wtxids` are those of all transactions but the coinbase, in block order; the coinbase counts as zero.
pub fn witness_commitment(wtxids: &[Hash256]) -> [u8; 38] {
    let root = root_by_branch(Hash256::default(), &branch(wtxids));
    let commitment = parent(&root, &Hash256::default());
    let mut script = [0u8; 38];
    script[..6].copy_from_slice(&COMMITMENT_PREFIX);
    script[6..].copy_from_slice(&commitment.0);
    script
}

/// `OP_RETURN`, a push of 36 bytes, and the marker of BIP141.
pub const COMMITMENT_PREFIX: [u8; 6] = [0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: every row in full.
    fn slow_root(leaves: &[Hash256]) -> Hash256 {
        let mut row = leaves.to_vec();
        while row.len() > 1 {
            if row.len() % 2 == 1 {
                row.push(row[row.len() - 1]);
            }
            row = row.chunks(2).map(|pair| parent(&pair[0], &pair[1])).collect();
        }
        row[0]
    }

    proptest! {
        #[test]
        fn the_branch_leads_to_the_root_of_the_full_tree(count in 1usize..=40, seed in any::<u64>(), twin in any::<bool>()) {
            // Equal neighbours are where a wrong treatment of odd rows hides.
            let leaves: Vec<_> = (0..count).map(|i| sha256d(&[seed.to_le_bytes(), (if twin { i as u64 / 2 } else { i as u64 }).to_le_bytes()].concat())).collect();
            let siblings = branch(&leaves[1..]);
            prop_assert_eq!(root_by_branch(leaves[0], &siblings), slow_root(&leaves));
            prop_assert_eq!(siblings.len(), (count as f64).log2().ceil() as usize);
        }
    }

    #[test]
    fn every_count_to_forty_agrees_with_the_full_tree() {
        for count in 1..=40u8 {
            let leaves: Vec<_> = (0..count).map(|i| sha256d(&[i])).collect();
            assert_eq!(root_by_branch(leaves[0], &branch(&leaves[1..])), slow_root(&leaves), "{count} leaves");
        }
    }

    #[test]
    fn a_block_without_transactions_commits_to_the_published_script() {
        // The commitment of every empty segwit block.
        let expected = "6a24aa21a9ede2f61c3f71d1defd3fa999dfa36953755c690689799962b48bebd836974e8cf9";
        assert_eq!(otedama_primitives::encode_hex(&witness_commitment(&[])), expected);
    }
}
