//! Which chain the pool mines, and the script its blocks pay.
use bitcoin::address::{Address, NetworkUnchecked};
use std::fmt;
use std::str::FromStr;

/// A Bitcoin chain, `[chain] network`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Network {
    /// The chain with the money.
    Main,
    /// The third test chain.
    Testnet3,
    /// The fourth test chain (BIP94).
    Testnet4,
    /// The test chain whose blocks are signed (BIP325); addresses only: its templates are refused.
    Signet,
    /// A private chain for tests.
    Regtest,
}

impl Network {
    /// Every network.
    pub const ALL: [Self; 5] = [Self::Main, Self::Testnet3, Self::Testnet4, Self::Signet, Self::Regtest];

    /// The config word.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Testnet3 => "testnet3",
            Self::Testnet4 => "testnet4",
            Self::Signet => "signet",
            Self::Regtest => "regtest",
        }
    }

    /// The network of a config word; also takes the names that getblockchaininfo and other tools use.
    pub fn from_label(label: &str) -> Option<Self> {
        Some(match label {
            "main" | "mainnet" | "bitcoin" => Self::Main,
            "testnet3" | "testnet" | "test" => Self::Testnet3,
            "testnet4" => Self::Testnet4,
            "signet" => Self::Signet,
            "regtest" => Self::Regtest,
            _ => return None,
        })
    }

    /// `chain` of Bitcoin Core's getblockchaininfo.
    pub const fn node_name(self) -> &'static str {
        match self {
            Self::Testnet3 => "test",
            other => other.label(),
        }
    }

    const fn bitcoin(self) -> bitcoin::Network {
        match self {
            Self::Main => bitcoin::Network::Bitcoin,
            Self::Testnet3 => bitcoin::Network::Testnet,
            Self::Testnet4 => bitcoin::Network::Testnet4,
            Self::Signet => bitcoin::Network::Signet,
            Self::Regtest => bitcoin::Network::Regtest,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Why no block can pay the configured address.
#[derive(Debug, thiserror::Error)]
pub enum PayoutError {
    /// No address at all.
    #[error(
        "[chain] payout_address is empty: set it to an address of the {network} network, to which found blocks pay (or set rpc = [\"practice\"] to try the pool without one)"
    )]
    Empty {
        /// The configured network.
        network: Network,
    },
    /// The text is no address of any network.
    #[error("[chain] payout_address \"{address}\" is not a Bitcoin address: copy it again from the wallet, without blanks")]
    Malformed {
        /// The text.
        address: String,
        /// What the decoder says.
        #[source]
        source: bitcoin::address::ParseError,
    },
    /// An address of another network.
    #[error(
        "[chain] payout_address \"{address}\" belongs to {belongs}, but [chain] network = \"{network}\": use an address of {network}, or set the network to match"
    )]
    OtherNetwork {
        /// The text.
        address: String,
        /// Networks it is valid for.
        belongs: String,
        /// The configured network.
        network: Network,
    },
}

/// The script that pays `address`, which must be of `network`.
pub fn payout_script(network: Network, address: &str) -> Result<Vec<u8>, PayoutError> {
    if address.is_empty() {
        return Err(PayoutError::Empty { network });
    }
    let unchecked =
        Address::<NetworkUnchecked>::from_str(address).map_err(|source| PayoutError::Malformed { address: address.to_owned(), source })?;
    if !unchecked.is_valid_for_network(network.bitcoin()) {
        let valid: Vec<_> = Network::ALL.into_iter().filter(|n| unchecked.is_valid_for_network(n.bitcoin())).map(Network::label).collect();
        return Err(PayoutError::OtherNetwork { address: address.to_owned(), belongs: valid.join(" or "), network });
    }
    Ok(unchecked.assume_checked().script_pubkey().into_bytes())
}

/// What practice blocks pay when no address is set: a script that says what it is and that anyone can spend (push "otedama practice", drop it, push true).
pub fn practice_payout_script() -> Vec<u8> {
    const LABEL: &[u8; 16] = b"otedama practice";
    let mut script = vec![LABEL.len() as u8];
    script.extend_from_slice(LABEL);
    script.extend_from_slice(&[0x75, 0x51]);
    script
}

#[cfg(test)]
mod tests {
    use super::*;
    use otedama_primitives::encode_hex;

    #[test]
    fn addresses_of_every_kind_become_their_script() {
        // BIP173 and BIP350 test vectors and Bitcoin's oldest addresses.
        for (network, address, script) in [
            (Network::Main, "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", "76a91462e907b15cbf27d5425399ebf6f0fb50ebb88f1888ac"),
            (Network::Main, "3P14159f73E4gFr7JterCCQh9QjiTjiZrG", "a914e9c3dd0c07aac76179ebc76a6c78d4d67c6c160a87"),
            (Network::Main, "BC1QW508D6QEJXTDG4Y5R3ZARVARY0C5XW7KV8F3T4", "0014751e76e8199196d454941c45d1b3a323f1433bd6"),
            (Network::Testnet4, "tb1qw508d6qejxtdg4y5r3zarvary0c5xw7kxpjzsx", "0014751e76e8199196d454941c45d1b3a323f1433bd6"),
            (
                Network::Main,
                "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0",
                "512079be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798",
            ),
        ] {
            assert_eq!(encode_hex(&payout_script(network, address).expect(address)), script);
        }
    }

    #[test]
    fn a_wrong_address_says_what_to_mend() {
        let other = payout_script(Network::Main, "tb1qw508d6qejxtdg4y5r3zarvary0c5xw7kxpjzsx").expect_err("other network").to_string();
        assert!(other.contains("belongs to testnet3 or testnet4 or signet") && other.contains("network = \"main\""), "{other}");
        let typo = payout_script(Network::Main, "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t5").expect_err("checksum").to_string();
        assert!(typo.contains("copy it again"), "{typo}");
        assert!(payout_script(Network::Regtest, "").expect_err("empty").to_string().contains("payout_address is empty"));
    }

    #[test]
    fn labels_read_back() {
        for network in Network::ALL {
            assert_eq!(Network::from_label(network.label()), Some(network));
            assert_eq!(Network::from_label(network.node_name()), Some(network));
        }
        assert_eq!(Network::from_label("practice"), None);
    }
}
