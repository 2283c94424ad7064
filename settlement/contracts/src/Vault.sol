// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {
    IERC20Metadata
} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Metadata.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {
    ReentrancyGuardTransient
} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

/// @title The exchange's escrow: one token, one account per wallet.
/// @notice Every amount is in base units of a six-decimal dollar token (µUSDC).
/// Enforced here: money leaves only to the wallet that owns it; batches and withdrawals happen
/// once each, in order; token.balanceOf(vault) is never below the sum of free, locked and bond.
/// Trusted to the settler: that both parties of a fill agreed to it.
/// @dev One storage slot holds what settling a buyer needs, another the owner and the bond.
contract Vault is AccessControl, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    struct Account {
        uint96 free;
        uint96 locked;
        uint40 exitAt;
        uint24 flags;
    }

    struct Holder {
        address owner;
        uint96 bond;
    }

    struct Counters {
        uint64 head;
        uint64 deposits;
        uint64 lastWithdrawal;
        uint32 accounts;
        uint32 exits;
    }

    struct AccountView {
        address owner;
        uint96 free;
        uint96 locked;
        uint96 bond;
        uint40 exitAt;
    }

    bytes32 public constant SETTLER_ROLE = keccak256("SETTLER_ROLE");

    /// @notice Bytes of one fill: buyer u32, seller u32, price_ticks u32, qty_lots u32,
    /// instrument u32, event number u64, buyer's fee u16, seller's fee u16, all big endian.
    uint256 public constant FILL_BYTES = 32;
    /// @notice Fees are in parts per million of price * quantity, at most five per cent.
    uint256 public constant FEE_PPM_MAX = 50_000;
    uint256 private constant PPM = 1_000_000;
    /// @notice How long a requested exit leaves the settler to settle what was traded before.
    uint256 public constant EXIT_DELAY = 7 days;
    // The exchange refuses what is beyond these, and it takes deposits strictly in order: a
    // deposit it must refuse would stand in the way of every later one, so none is let in.
    uint256 public constant DEPOSIT_MIN = 1e6;
    uint256 public constant DEPOSIT_MAX = 1e15;
    uint256 public constant BALANCE_MAX = 1 << 60;
    uint256 public constant ACCOUNTS_MAX = (1 << 20) - 1;

    IERC20 public immutable TOKEN;

    mapping(uint32 account => Account) private _accounts;
    mapping(uint32 account => Holder) private _holders;
    mapping(address owner => uint32 account) public indexOf;
    /// @notice keccak256 of a settled batch's fills.
    mapping(uint64 id => bytes32 fillsHash) public batch;
    Counters private _counters;

    event AccountOpened(uint32 indexed account, address indexed owner);
    event Deposited(
        uint64 indexed number,
        uint32 indexed account,
        address indexed owner,
        uint96 amount,
        bool isBond
    );
    event Batch(uint64 indexed id, bytes32 fillsHash, uint256 fills, uint256 total);
    event Withdrawn(
        uint64 indexed id, uint32 indexed account, address owner, uint96 amount
    );
    // Numbered together, so that whoever follows them knows that none is missing.
    event ExitRequested(uint32 indexed number, uint32 indexed account, uint40 exitAt);
    event ExitCancelled(uint32 indexed number, uint32 indexed account);
    event Exited(uint32 indexed number, uint32 indexed account, uint96 amount);

    error WrongDecimals(uint8 decimals);
    error DepositOutOfRange(uint256 amount);
    error VaultFull();
    error UnknownAccount(uint256 account);
    error InsufficientFree(uint256 account, uint256 free, uint256 needed);
    error AccountExiting(uint256 account);
    error BatchOutOfOrder(uint64 expected, uint64 given);
    error WithdrawalOutOfOrder(uint64 last, uint64 given);
    error MalformedFills(uint256 length);
    error WorthlessFill(uint256 index);
    error FeeTooHigh(uint256 index);
    error ZeroAmount();
    error ExitPending(uint40 exitAt);
    error NoExitPending();

    /// @param token A six-decimal dollar token.
    /// @param admin May grant and revoke the settler's role; holds no other power.
    /// @param settler May settle batches and pay owners out.
    constructor(IERC20Metadata token, address admin, address settler) {
        uint8 decimals = token.decimals();
        if (decimals != 6) revert WrongDecimals(decimals);
        TOKEN = token;
        _grantRole(DEFAULT_ADMIN_ROLE, admin);
        _grantRole(SETTLER_ROLE, settler);
    }

    // --- wallets -----------------------------------------------------------------------------

    /// @notice Bring money in to buy with. The first deposit opens the wallet's account.
    /// Refused while the wallet's exit is under way.
    /// @param amount What to pull from the caller, who has approved it; what arrives is credited.
    function deposit(uint256 amount) external nonReentrant {
        uint32 account = _openAccount();
        uint96 received = _pull(amount);
        _accounts[account].free += received;
        emit Deposited(++_counters.deposits, account, msg.sender, received, false);
    }

    /// @notice Bring in a bond to sell with; it stands behind every hour sold.
    /// @param amount As for deposit.
    function depositBond(uint256 amount) external nonReentrant {
        uint32 account = _openAccount();
        uint96 received = _pull(amount);
        _holders[account].bond += received;
        emit Deposited(++_counters.deposits, account, msg.sender, received, true);
    }

    /// @notice Announce that you take your free money out yourself, without the settler.
    /// @dev Until exitAt the settler may still lock what was traded before (else asking for an
    /// exit would be a way out of a bad trade); from then on it may not.
    function requestExit() external {
        uint32 account = _accountOf(msg.sender);
        Account storage slot = _accounts[account];
        if (slot.exitAt != 0) revert ExitPending(slot.exitAt);
        uint40 exitAt = uint40(block.timestamp + EXIT_DELAY);
        slot.exitAt = exitAt;
        emit ExitRequested(_nextExit(), account, exitAt);
    }

    /// @notice Go on trading after all.
    function cancelExit() external {
        uint32 account = _accountOf(msg.sender);
        if (_accounts[account].exitAt == 0) revert NoExitPending();
        _accounts[account].exitAt = 0;
        emit ExitCancelled(_nextExit(), account);
    }

    /// @notice Take all free money out, once the delay is over. Nobody can prevent it.
    function finishExit() external nonReentrant {
        uint32 account = _accountOf(msg.sender);
        Account storage slot = _accounts[account];
        if (slot.exitAt == 0) revert NoExitPending();
        if (block.timestamp < slot.exitAt) revert ExitPending(slot.exitAt);
        uint96 amount = slot.free;
        slot.free = 0;
        slot.exitAt = 0;
        emit Exited(_nextExit(), account, amount);
        TOKEN.safeTransfer(msg.sender, amount);
    }

    // --- the settler ---------------------------------------------------------------------------

    /// @notice Lock what buyers pay for a batch of fills, price and fee; all of it, or nothing.
    /// The seller's fee is on record with the fill, to be taken from the proceeds.
    /// @param id The batch after the last one.
    /// @param fills FILL_BYTES each. A buyer's fills should be neighbours: each run of one buyer
    /// costs one read and one write.
    function settle(uint64 id, bytes calldata fills) external onlyRole(SETTLER_ROLE) {
        Counters storage counters = _counters;
        uint64 expected = counters.head + 1;
        if (id != expected) revert BatchOutOfOrder(expected, id);
        if (fills.length == 0 || fills.length % FILL_BYTES != 0) {
            revert MalformedFills(fills.length);
        }
        uint256 total = _lockFills(fills, counters.accounts);
        bytes32 fillsHash = keccak256(fills);
        counters.head = id;
        batch[id] = fillsHash;
        emit Batch(id, fillsHash, fills.length / FILL_BYTES, total);
    }

    /// @notice Pay an account's owner out of its free money. There is no other recipient.
    /// @param id Above every id used before.
    function withdraw(uint64 id, uint32 account, uint96 amount)
        external
        onlyRole(SETTLER_ROLE)
        nonReentrant
    {
        uint64 last = _counters.lastWithdrawal;
        if (id <= last) revert WithdrawalOutOfOrder(last, id);
        if (amount == 0) revert ZeroAmount();
        address owner = _holders[account].owner;
        if (owner == address(0)) revert UnknownAccount(account);
        Account storage slot = _accounts[account];
        if (slot.free < amount) revert InsufficientFree(account, slot.free, amount);
        _counters.lastWithdrawal = id;
        slot.free -= amount;
        emit Withdrawn(id, account, owner, amount);
        TOKEN.safeTransfer(owner, amount);
    }

    // --- reads -----------------------------------------------------------------------------------

    /// @notice The counters, the last batch's hash and the vault's tokens, all of one block.
    function state()
        external
        view
        returns (
            uint64 head,
            bytes32 headHash,
            uint64 deposits,
            uint32 accounts,
            uint64 lastWithdrawal,
            uint32 exits,
            uint256 balance
        )
    {
        Counters memory c = _counters;
        balance = TOKEN.balanceOf(address(this));
        return (
            c.head, batch[c.head], c.deposits, c.accounts, c.lastWithdrawal, c.exits, balance
        );
    }

    /// @notice Accounts first, first + 1, ... at most count of them, as far as there are any.
    function accountsFrom(uint32 first, uint32 count)
        external
        view
        returns (AccountView[] memory views)
    {
        uint256 end = uint256(_counters.accounts) + 1;
        if (first == 0 || first >= end) return views;
        if (end > uint256(first) + count) end = uint256(first) + count;
        views = new AccountView[](end - first);
        for (uint256 i = 0; i < views.length; ++i) {
            Account memory a = _accounts[uint32(first + i)];
            Holder memory h = _holders[uint32(first + i)];
            views[i] = AccountView(h.owner, a.free, a.locked, h.bond, a.exitAt);
        }
    }

    // --- inside ----------------------------------------------------------------------------------

    /// @dev Credits what arrived, not what was asked for: a token may charge for its transfers.
    function _pull(uint256 amount) private returns (uint96) {
        uint256 before = TOKEN.balanceOf(address(this));
        TOKEN.safeTransferFrom(msg.sender, address(this), amount);
        uint256 afterwards = TOKEN.balanceOf(address(this));
        uint256 received = afterwards - before;
        if (received < DEPOSIT_MIN || received > DEPOSIT_MAX) revert DepositOutOfRange(received);
        if (afterwards > BALANCE_MAX) revert VaultFull();
        return uint96(received); // DEPOSIT_MAX is far below 2^96
    }

    function _openAccount() private returns (uint32 account) {
        account = indexOf[msg.sender];
        if (account != 0) {
            if (_accounts[account].exitAt != 0) revert AccountExiting(account);
            return account;
        }
        account = ++_counters.accounts;
        if (account > ACCOUNTS_MAX) revert VaultFull();
        indexOf[msg.sender] = account;
        _holders[account].owner = msg.sender;
        emit AccountOpened(account, msg.sender);
    }

    /// @dev Wraps rather than stand in the way of an exit.
    function _nextExit() private returns (uint32 number) {
        unchecked {
            number = ++_counters.exits;
        }
    }

    function _accountOf(address owner) private view returns (uint32 account) {
        account = indexOf[owner];
        if (account == 0) revert UnknownAccount(0);
    }

    /// @dev price * qty is below 2^64 and the fee below that, and there are fewer than 2^32 fills:
    /// no sum overflows. Each fill's fee is rounded down, in favour of the buyer.
    function _lockFills(bytes calldata fills, uint256 accounts) private returns (uint256 total) {
        unchecked {
            uint256 buyer;
            uint256 owed;
            for (uint256 offset = 0; offset < fills.length; offset += FILL_BYTES) {
                uint256 word;
                assembly ("memory-safe") {
                    word := calldataload(add(fills.offset, offset))
                }
                uint256 amount = ((word >> 160) & 0xffffffff) * ((word >> 128) & 0xffffffff);
                if (amount == 0) revert WorthlessFill(offset / FILL_BYTES);
                uint256 fee = (word >> 16) & 0xffff;
                if (fee > FEE_PPM_MAX || (word & 0xffff) > FEE_PPM_MAX) {
                    revert FeeTooHigh(offset / FILL_BYTES);
                }
                amount += amount * fee / PPM;
                uint256 seller = (word >> 192) & 0xffffffff;
                if (seller - 1 >= accounts) revert UnknownAccount(seller);
                if (word >> 224 != buyer) {
                    if (owed != 0) _lock(buyer, owed);
                    buyer = word >> 224;
                    if (buyer - 1 >= accounts) revert UnknownAccount(buyer);
                    total += owed;
                    owed = 0;
                }
                owed += amount;
            }
            _lock(buyer, owed);
            total += owed;
        }
    }

    function _lock(uint256 buyer, uint256 owed) private {
        Account memory a = _accounts[uint32(buyer)];
        if (a.exitAt != 0 && block.timestamp >= a.exitAt) revert AccountExiting(buyer);
        if (a.free < owed) revert InsufficientFree(buyer, a.free, owed);
        // owed <= free < 2^96, and free + locked <= BALANCE_MAX
        unchecked {
            a.free -= uint96(owed);
            a.locked += uint96(owed);
        }
        _accounts[uint32(buyer)] = a;
    }
}
