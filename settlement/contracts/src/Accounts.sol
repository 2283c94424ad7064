// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {
    IERC20Metadata
} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Metadata.sol";
import {
    ReentrancyGuardTransient
} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

/// @title Whose money is in the vault: the storage of both halves, and what moves it.
/// @notice One six-decimal dollar token, one account per wallet, every amount in µUSDC. The token
/// balance is never below the sum of free, locked, bond and earnings of all accounts, the
/// settler's bond, open stakes and what is owed.
/// @dev Four slots an account, each needed by other callers, so that settling touches one of them.
abstract contract Accounts is AccessControl, ReentrancyGuardTransient, EIP712 {
    // Two contracts share this storage: what one of them never writes, the other does.
    // slither-disable-start uninitialized-state,unused-state
    /// @dev What settling and releasing a buyer needs: free u96 (lowest), locked u96, exitAt u40.
    mapping(uint256 account => uint256) internal _slots;
    mapping(uint256 account => Holder) internal _holders;
    mapping(uint256 account => Earnings) internal _earnings;
    mapping(uint256 account => Cancellation) internal _cancellations;
    mapping(address owner => uint24 account) public indexOf;
    /// @notice Session keys that wallets have named, or taken back, by calling the vault.
    mapping(address owner => mapping(address key => SessionKey)) public sessionKeys;
    /// @notice Stakes and rewards to be fetched by whoever challenged.
    mapping(address challenger => uint256) public owed;
    Counters internal _counters;
    Numbers internal _numbers;
    /// @notice What was asked back of the settler's bond, and when it may be taken.
    BondRequest public bondRequest;
    // slither-disable-end uninitialized-state,unused-state

    struct Holder {
        address owner;
        uint96 bond;
    }

    /// @dev Released money waits: what is credited in one epoch matures two epochs later, so it
    /// can be taken back for at least one whole epoch. Account 0 is the exchange, its fees.
    struct Earnings {
        uint64 matured;
        uint64 previous; // of the epoch before
        uint64 current; // of the epoch
        uint32 epoch;
        uint32 bondAt; // when the bond may be taken; 0: not asked for
    }

    /// @dev Orders numbered below are cancelled for batches posted from then on; the last two.
    struct Cancellation {
        uint32 below;
        uint40 since;
        uint32 nextBelow;
        uint40 nextSince;
    }

    struct SessionKey {
        uint64 validUntil;
        uint64 revokedAt; // for batches posted from then on; 0: not revoked
    }

    struct Counters {
        uint48 head;
        uint64 lastWithdrawal;
        uint64 settlerBond;
        uint40 lastHeard; // of the settler; once frozen, when that was
        uint24 accounts;
        bool paused;
        bool frozen;
    }

    struct Numbers {
        uint64 deposits;
        uint64 releases;
        uint32 exits;
    }

    struct BondRequest {
        uint64 amount;
        uint40 due;
    }

    bytes32 public constant SETTLER_ROLE = keccak256("SETTLER_ROLE");
    bytes32 public constant ARBITER_ROLE = keccak256("ARBITER_ROLE");
    bytes32 public constant PAUSER_ROLE = keccak256("PAUSER_ROLE");

    // Windows are constants: nobody can shorten one, open or not.
    /// @notice How long a requested exit leaves the settler to settle what was traded before.
    uint256 public constant EXIT_DELAY = 7 days;
    /// @notice How long after its end, its cancellation or its key's end an order may be settled.
    uint256 public constant GRACE = 1 days;
    /// @notice Delivery of what is settled ends within this time.
    uint256 public constant HORIZON = 60 days;
    /// @notice How long a bond stays after it was asked for: until the last lease that it stands
    /// behind has ended, was released or claimed, and could be decided on.
    uint256 public constant BOND_DELAY = 100 days;
    /// @notice How long the settler's bond stays after it was asked for; longer than any dispute.
    uint256 public constant SETTLER_BOND_DELAY = 14 days;
    /// @notice After so long without a sign of the settler anybody may freeze the vault.
    uint256 public constant SILENCE = 14 days;
    uint256 public constant EPOCH = 1 days;

    // The exchange refuses what is beyond these, and it takes deposits strictly in order: a
    // deposit it must refuse would stand in the way of every later one, so none is let in.
    uint256 public constant DEPOSIT_MIN = 1e6;
    uint256 public constant DEPOSIT_MAX = 1e15;
    uint256 public constant BALANCE_MAX = 1 << 60;
    uint256 public constant ACCOUNTS_MAX = (1 << 20) - 1;

    IERC20 public immutable TOKEN;
    /// @notice Without so much behind it the settler can settle nothing.
    uint64 public immutable SETTLER_BOND_MIN;

    event AccountOpened(uint24 indexed account, address indexed owner);
    event Deposited(
        uint64 indexed number,
        uint24 indexed account,
        address indexed owner,
        uint96 amount,
        bool isBond
    );
    event Withdrawn(uint64 indexed id, uint24 indexed account, address owner, uint96 amount);
    // Numbered together, so that whoever follows them knows that none is missing.
    event ExitRequested(uint32 indexed number, uint24 indexed account, uint40 exitAt);
    event ExitCancelled(uint32 indexed number, uint24 indexed account);
    event Exited(uint32 indexed number, uint24 indexed account, uint96 amount);
    event Collected(uint24 indexed account, uint64 amount);
    event BondRequested(uint24 indexed account, uint32 bondAt);
    event BondTaken(uint24 indexed account, uint96 amount);
    event CancelledBelow(uint24 indexed account, uint32 below, uint40 since);
    event KeyAuthorised(address indexed owner, address indexed key, uint64 validUntil);
    event KeyRevoked(address indexed owner, address indexed key, uint64 revokedAt);
    event SettlerBondAdded(uint256 amount);
    event SettlerBondTaken(uint256 amount);
    event SettlerBondRequested(uint64 amount, uint40 due);
    event FeesTaken(address indexed to, uint64 amount);
    event OwedTaken(address indexed challenger, uint256 amount);
    event Paused(bool paused);
    event Frozen(uint40 time);

    error WrongDecimals(uint8 decimals);
    error DepositOutOfRange(uint256 amount);
    error VaultFull();
    error UnknownAccount(uint256 account);
    error InsufficientFree(uint256 account, uint256 free, uint256 needed);
    error InsufficientLocked(uint256 account, uint256 locked, uint256 needed);
    error AccountExiting(uint256 account);
    error WithdrawalOutOfOrder(uint64 last, uint64 given);
    error TransferRefused(uint256 account);
    error ZeroAmount();
    error ExitPending(uint40 exitAt);
    error NoExitPending();
    error TooEarly(uint256 from);
    error NothingToTake();
    error NotBelow(uint32 below);
    error KeyIsRevoked(address key);
    error IsPaused();
    error IsFrozen();
    error NotFrozen();

    modifier working() {
        if (_counters.frozen) revert IsFrozen();
        if (_counters.paused) revert IsPaused();
        _;
    }

    /// @param token A six-decimal dollar token.
    /// @param settlerBondMin What the settler must have at stake to settle.
    constructor(IERC20Metadata token, uint64 settlerBondMin) EIP712("compex", "1") {
        uint8 decimals = token.decimals();
        if (decimals != 6) revert WrongDecimals(decimals);
        TOKEN = token;
        SETTLER_BOND_MIN = settlerBondMin;
    }

    // --- inside ------------------------------------------------------------------------------

    function _exitAt(uint256 slot) internal pure returns (uint256) {
        return slot >> 192;
    }

    function _addFree(uint256 account, uint256 amount) internal {
        _slots[account] += amount; // all money together is below 2^96
    }

    /// @dev Gives locked money back to free.
    function _unlock(uint256 account, uint256 amount) internal {
        _takeLocked(account, amount);
        _addFree(account, amount);
    }

    function _takeLocked(uint256 account, uint256 amount) internal {
        uint256 slot = _slots[account];
        uint256 locked = uint96(slot >> 96);
        if (locked < amount) revert InsufficientLocked(account, locked, amount);
        unchecked {
            _slots[account] = slot - (amount << 96); // no borrow: amount <= locked
        }
    }

    /// @dev An account's earnings as of now, in memory.
    function _rolled(uint256 account) internal view returns (Earnings memory e) {
        e = _earnings[account];
        uint32 epoch = uint32(block.timestamp / EPOCH);
        if (e.epoch == epoch) return e;
        e.matured += e.previous;
        if (e.epoch + 1 == epoch) {
            e.previous = e.current;
        } else {
            e.matured += e.current;
            e.previous = 0;
        }
        e.current = 0;
        e.epoch = epoch;
    }

    function _earn(uint256 account, uint256 amount) internal {
        Earnings memory e = _rolled(account);
        e.current += uint64(amount); // below 2^60, as all money is
        _earnings[account] = e;
    }

    /// @dev Undoes an _earn of this epoch or the one before.
    function _unearn(uint256 account, uint256 amount, bool isOfThisEpoch) internal {
        Earnings memory e = _rolled(account);
        if (isOfThisEpoch) e.current -= uint64(amount);
        else e.previous -= uint64(amount);
        _earnings[account] = e;
    }

    function _addSettlerBond(uint256 amount) internal {
        _counters.settlerBond += uint64(amount); // below 2^60, as all money is
    }

    /// @dev As much of it as is there.
    function _takeSettlerBond(uint256 amount) internal returns (uint256 taken) {
        uint256 bond = _counters.settlerBond;
        taken = amount < bond ? amount : bond;
        _counters.settlerBond = uint64(bond - taken);
        emit SettlerBondTaken(taken);
    }

    /// @dev Whether the account had cancelled an order when a batch was posted.
    function _isCancelled(uint256 account, uint256 order, uint256 postedAt)
        internal
        view
        returns (bool)
    {
        Cancellation memory c = _cancellations[account];
        return (order < c.below && postedAt >= c.since)
            || (order < c.nextBelow && postedAt >= c.nextSince);
    }

    function _accountOf(address owner) internal view returns (uint24 account) {
        account = indexOf[owner];
        if (account == 0) revert UnknownAccount(0);
    }

    /// @dev What arrived, not what was asked for: a token may charge for its transfers.
    function _arrived(uint256 before) internal view returns (uint96) {
        uint256 afterwards = TOKEN.balanceOf(address(this));
        uint256 received = afterwards - before;
        if (received < DEPOSIT_MIN || received > DEPOSIT_MAX) revert DepositOutOfRange(received);
        if (afterwards > BALANCE_MAX) revert VaultFull();
        return uint96(received); // DEPOSIT_MAX is far below 2^96
    }
}
