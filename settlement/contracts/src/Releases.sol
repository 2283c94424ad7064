// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title What a record of a release says.
/// @notice A record is 21 bytes, big endian: the lease's index in its batch u16, the places of
/// buyer and seller in the release's list of accounts u8 each, and, in µUSDC, what the seller gets
/// u48, what the buyer gets back u48 and what the exchange gets u40: together what was locked for
/// the lease. One of more ($281 million) is closed by claim. A list of accounts is 3 bytes each.
/// @dev Records are hashed in chunks, so that a false one can be shown for the price of its chunk.
/// A chunk never has 64 bytes, so no node above can be passed off as one.
library Releases {
    uint256 internal constant BYTES = 21;
    uint256 internal constant ACCOUNT_BYTES = 3;
    uint256 internal constant ACCOUNTS_MAX = 256;
    uint256 internal constant CHUNK = 32; // records
    uint256 internal constant CHUNK_BYTES = CHUNK * BYTES;

    /// @notice A record, read.
    struct Record {
        uint256 index;
        uint256 buyer; // the account, not its place
        uint256 seller;
        uint256 cost;
        uint256 toSeller;
        uint256 toBuyer;
    }

    /// @notice One record of a release, and its way to the release's commitment.
    struct Proof {
        uint64 release;
        uint64 batch;
        bytes accounts;
        bytes chunk;
        uint256 chunkIndex;
        bytes32[] path;
        uint256 place; // of the record in its chunk
    }

    /// @notice The record at a place of a chunk. The caller has checked that it is there.
    function read(bytes calldata chunk, uint256 place, bytes calldata accounts)
        internal
        pure
        returns (Record memory)
    {
        uint256 word = uint168(bytes21(chunk[place * BYTES:(place + 1) * BYTES]));
        uint256 toSeller = (word >> 88) & 0xffffffffffff;
        uint256 toBuyer = (word >> 40) & 0xffffffffffff;
        return Record({
            index: word >> 152,
            buyer: accountAt(accounts, (word >> 144) & 0xff),
            seller: accountAt(accounts, (word >> 136) & 0xff),
            cost: toSeller + toBuyer + (word & 0xffffffffff),
            toSeller: toSeller,
            toBuyer: toBuyer
        });
    }

    /// @dev The caller has checked that the place is in the list.
    function accountAt(bytes calldata accounts, uint256 place)
        internal
        pure
        returns (uint256 account)
    {
        assembly ("memory-safe") {
            account := shr(232, calldataload(add(accounts.offset, mul(place, 3))))
        }
    }

    /// @notice What the vault keeps of a release.
    function commitment(uint64 batch, bytes calldata accounts, bytes32 root)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(batch, keccak256(accounts), root));
    }
}
