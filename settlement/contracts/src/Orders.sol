// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";

/// @title What traders sign, as EIP-712 typed data, and who has signed it.
/// @notice A key signs one Order, or an OrderRoot over many: then an order is proved by its path
/// (sorted pairs; an order's own hash is of more than two words, so no node passes for one) and
/// one signature. The key is the wallet's own or one that the wallet named, in a SessionKey that it
/// signed or by calling the vault.
/// @dev A digest holds domain, chain and vault. Signatures have 65 bytes and s in the lower half.
library Orders {
    bytes32 internal constant ORDER_TYPEHASH = keccak256(
        "Order(uint32 account,bool is_buy,uint16 series,uint32 window,uint32 price_ticks,"
        "uint32 qty_lots,uint32 number,uint16 fee_ppm_max,uint64 valid_until_s)"
    );
    bytes32 internal constant ROOT_TYPEHASH = keccak256("OrderRoot(uint32 account,bytes32 root)");
    bytes32 internal constant SESSION_KEY_TYPEHASH = keccak256(
        "SessionKey(address wallet,address key,uint8 scopes,string[] markets,"
        "uint64 valid_from_s,uint64 valid_until_s,uint64 nonce)"
    );

    /// @notice What a fill does not say of the order behind it, and the signatures.
    struct Signed {
        uint32 price; // the most a buyer pays, the least a seller takes
        uint32 qty;
        uint16 feeMax;
        uint64 validUntil;
        bytes32[] path; // to the signed root; empty: the order itself is signed
        bytes signature;
        Authority authority;
    }

    /// @notice A session key and how the wallet named it. A key that is the wallet's own, or was
    /// named by calling the vault, needs nothing but its address.
    struct Authority {
        address key;
        uint8 scopes;
        bytes32 marketsHash; // the EIP-712 hash of the list of markets
        uint64 validFrom;
        uint64 validUntil;
        uint64 nonce;
        bytes signature; // the wallet's; empty if none is needed
    }

    /// @notice What the order must say, from the fill.
    struct Terms {
        uint256 account;
        bool isBuy;
        uint256 series;
        uint256 window;
        uint256 number;
    }

    /// @notice Who has signed the order or the root above it; zero if nobody.
    function signer(Signed calldata order, Terms memory terms, bytes32 domain)
        internal
        pure
        returns (address)
    {
        bytes32 hash = keccak256(
            abi.encode(
                ORDER_TYPEHASH,
                terms.account,
                terms.isBuy,
                terms.series,
                terms.window,
                order.price,
                order.qty,
                terms.number,
                order.feeMax,
                order.validUntil
            )
        );
        if (order.path.length != 0) {
            bytes32 root = MerkleProof.processProofCalldata(order.path, hash);
            hash = keccak256(abi.encode(ROOT_TYPEHASH, terms.account, root));
        }
        return _recover(domain, hash, order.signature);
    }

    /// @notice Who has signed that this key may act for the wallet; zero if nobody.
    function authoriser(Authority calldata authority, address wallet, bytes32 domain)
        internal
        pure
        returns (address)
    {
        bytes32 hash = keccak256(
            abi.encode(
                SESSION_KEY_TYPEHASH,
                wallet,
                authority.key,
                authority.scopes,
                authority.marketsHash,
                authority.validFrom,
                authority.validUntil,
                authority.nonce
            )
        );
        return _recover(domain, hash, authority.signature);
    }

    function _recover(bytes32 domain, bytes32 hash, bytes calldata signature)
        private
        pure
        returns (address who)
    {
        // The second and third say why there is none; that there is none is enough.
        bytes32 digest = MessageHashUtils.toTypedDataHash(domain, hash);
        // slither-disable-next-line unused-return
        (who,,) = ECDSA.tryRecoverCalldata(digest, signature);
    }
}
