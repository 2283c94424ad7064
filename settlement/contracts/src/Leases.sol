// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Accounts} from "./Accounts.sol";

/// @title What the vault knows of batches, leases and releases: storage of both halves.
/// @dev The root of a batch is the only thing kept of its fills; who wants something of one brings
/// it along with its path.
abstract contract Leases is Accounts {
    /// @notice A fill of a batch and its way to the batch's root.
    struct Place {
        uint48 batch;
        uint16 index;
        uint240 fill;
        bytes32[] path;
    }

    /// @dev What was said of a lease by its buyer, and what came of disputes over it.
    struct Notice {
        uint40 stoppedAt;
        uint40 reportedAt;
        uint16 disputes; // open ones
        bool isVoid;
        bool isSlashed;
    }

    struct Dispute {
        address challenger;
        uint40 deadline;
        bool isOver;
    }

    /// @notice For so long after it was posted a batch's fills may be challenged; then its leases
    /// may be released.
    uint256 public constant CHALLENGE_WINDOW = 1 days;
    /// @notice Nobody has answered for so long: the fill is void.
    uint256 public constant ANSWER_WINDOW = 12 hours;
    /// @notice A lease that was not released so long after its end may be closed by anybody.
    uint256 public constant CLAIM_DELAY = 7 days;
    /// @notice Until so long after a lease's end its seller's bond may be decided on.
    uint256 public constant SLASH_WINDOW = 30 days;
    /// @notice At most so many times the shortfall is taken of a bond.
    uint256 public constant SLASH_FACTOR = 2;
    /// @notice What a challenger puts down: the settler's if the challenge was answered.
    uint256 public constant STAKE = 20e6;
    /// @notice What a wrong fill or release costs the settler: half goes to whoever showed it, a
    /// quarter to each party.
    uint256 public constant PENALTY = 500e6;

    // Two contracts share this storage: what one of them never writes, the other does.
    // slither-disable-start uninitialized-state,unused-state
    /// @dev The first 27 bytes of a batch's root, then the time it was posted, u40.
    mapping(uint256 id => uint256) internal _batches;
    /// @dev The same of a release's commitment.
    mapping(uint256 id => uint256) internal _releases;
    /// @dev One bit a lease: nothing more is paid out of it.
    mapping(uint256 batch => mapping(uint256 word => uint256)) internal _closed;
    /// @dev One bit a record of a release: it was undone.
    mapping(uint256 release => mapping(uint256 word => uint256)) internal _undone;
    mapping(uint256 lease => Notice) internal _notices;
    mapping(bytes32 id => Dispute) internal _disputes;
    // slither-disable-end uninitialized-state,unused-state

    error UnknownBatch(uint256 id);
    error WindowOpen(uint256 until);
    error LeaseClosed(uint256 batch, uint256 index);

    function _postedAt(uint256 id) internal view returns (uint256 postedAt) {
        postedAt = uint40(_batches[id]);
        if (postedAt == 0) revert UnknownBatch(id);
    }

    function _isClosed(uint256 batchId, uint256 index) internal view returns (bool) {
        return (_closed[batchId][index >> 8] >> (index & 0xff)) & 1 == 1;
    }
}
