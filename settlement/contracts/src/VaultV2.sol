// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {
    IERC20Metadata
} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Metadata.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Address} from "@openzeppelin/contracts/utils/Address.sol";
import {Accounts} from "./Accounts.sol";
import {Disputes} from "./Disputes.sol";
import {Fills} from "./Fills.sol";
import {IERC3009} from "./IERC3009.sol";
import {Leases} from "./Leases.sol";
import {Releases} from "./Releases.sol";

/// @title The exchange's vault: money in and out, batches of fills locked, leases released.
/// @notice Money leaves only to the wallet that owns it. Enforced at once: amounts, sums, order and
/// uniqueness of batches, one closing of each lease. Enforced by challenge, with the settler's bond
/// at stake: that both parties of a fill have signed for it, and that a release says what its
/// leases say. Challenges, stops, reports and claims are calls of Disputes at this same address,
/// which this contract creates and lends its storage to. audit.md has the whole of it.
/// @dev Immutable; there is nothing to upgrade or to set but roles.
contract VaultV2 is Leases {
    using SafeERC20 for IERC20;

    struct AccountView {
        address owner;
        uint96 free;
        uint96 locked;
        uint96 bond;
        uint64 matured;
        uint64 pending;
        uint40 exitAt;
        uint32 bondAt;
    }

    /// @notice Of this interface: a node of the exchange refuses any other.
    uint256 public constant VERSION = 2;

    /// @notice The other half's code.
    address public immutable DISPUTES;

    event Batch(uint48 indexed id, bytes32 root, uint256 fills, uint256 total);
    event Release(uint64 indexed id, uint64 indexed batch, uint256 leases, uint256 total);

    error BatchOutOfOrder(uint48 expected, uint48 given);
    error ReleaseOutOfOrder(uint64 expected, uint64 given);
    error BondTooLow(uint64 bond, uint64 needed);
    error MalformedFills(uint256 length);
    error MalformedRecords(uint256 length);
    error MalformedAccounts(uint256 length);

    /// @param token A six-decimal dollar token.
    /// @param admin Gives and takes roles, takes fees and the settler's bond: a time lock.
    /// @param settler Settles, releases and pays owners out.
    /// @param arbiter Decides on bonds; must not be the settler.
    /// @param pauser Stops deposits, settling and releasing.
    /// @param settlerBondMin What the settler must have at stake to settle.
    constructor(
        IERC20Metadata token,
        address admin,
        address settler,
        address arbiter,
        address pauser,
        uint64 settlerBondMin
    ) Accounts(token, settlerBondMin) {
        DISPUTES = address(new Disputes(token, settlerBondMin));
        _counters.lastHeard = uint40(block.timestamp);
        _grantRole(DEFAULT_ADMIN_ROLE, admin);
        _grantRole(SETTLER_ROLE, settler);
        _grantRole(ARBITER_ROLE, arbiter);
        _grantRole(PAUSER_ROLE, pauser);
    }

    /// @dev Whatever is not here is a call of Disputes, on this contract's storage.
    fallback(bytes calldata input) external returns (bytes memory) {
        return Address.functionDelegateCall(DISPUTES, input);
    }

    // --- the settler -------------------------------------------------------------------------

    /// @notice Lock what buyers pay for a batch of fills, price and fee, and keep the root over
    /// them; all of it, or nothing.
    /// @param id The batch after the last one.
    /// @param fills Fills.BYTES each. A buyer's fills should be neighbours: each run of one buyer
    /// costs one read and one write.
    function settle(uint48 id, bytes calldata fills) external onlyRole(SETTLER_ROLE) {
        Counters memory c = _counters;
        if (c.frozen) revert IsFrozen();
        if (c.paused) revert IsPaused();
        if (id != c.head + 1) revert BatchOutOfOrder(c.head + 1, id);
        if (c.settlerBond < SETTLER_BOND_MIN) revert BondTooLow(c.settlerBond, SETTLER_BOND_MIN);
        uint256 count = fills.length / Fills.BYTES;
        if (count == 0 || count > Fills.COUNT_MAX || fills.length % Fills.BYTES != 0) {
            revert MalformedFills(fills.length);
        }
        c.head = id;
        c.lastHeard = uint40(block.timestamp);
        _counters = c;
        (uint256 leaves, uint256 total) = _lockFills(fills, count, c.accounts);
        bytes32 root = Fills.reduce(leaves, count);
        _batches[id] = _stamped(root);
        emit Batch(id, root, count, total);
    }

    /// @notice Pay sellers, and buyers back, for leases of one batch. What is paid can be taken
    /// back until it matures, should a record be false.
    /// @param id The release after the last one.
    /// @param batchId Whose leases they are.
    /// @param accounts Who occurs, Releases.ACCOUNT_BYTES each.
    /// @param records Releases.BYTES each; cheapest in the order of leases.
    function release(uint64 id, uint48 batchId, bytes calldata accounts, bytes calldata records)
        external
        onlyRole(SETTLER_ROLE)
        working
    {
        uint64 expected = _numbers.releases + 1;
        if (id != expected) revert ReleaseOutOfOrder(expected, id);
        uint256 open = _postedAt(batchId) + CHALLENGE_WINDOW;
        if (block.timestamp < open) revert WindowOpen(open);
        if (
            accounts.length % Releases.ACCOUNT_BYTES != 0
                || accounts.length > Releases.ACCOUNTS_MAX * Releases.ACCOUNT_BYTES
        ) revert MalformedAccounts(accounts.length);
        uint256 count = records.length / Releases.BYTES;
        if (count == 0 || records.length % Releases.BYTES != 0) {
            revert MalformedRecords(records.length);
        }
        _numbers.releases = id;
        _counters.lastHeard = uint40(block.timestamp);
        _releases[id] =
            _stamped(Releases.commitment(batchId, accounts, _chunksRoot(records)));
        uint256 total = _pay(batchId, accounts, records);
        emit Release(id, batchId, count, total);
    }

    // --- deposits ----------------------------------------------------------------------------

    /// @notice Bring money in: to buy with, or as the bond that stands behind what you sell. The
    /// first deposit opens the wallet's account. Refused while the wallet's exit is under way.
    /// @param amount What to pull from the caller, who has approved it; what arrives is credited.
    function deposit(uint256 amount, bool isBond) external {
        _deposit(amount, isBond);
    }

    /// @notice The same, with the approval as a signature (EIP-2612).
    /// @dev Whoever sees the signature may have used it before us; then it is approved already. A
    /// token that calls back from here finds nothing begun yet.
    // slither-disable-next-line reentrancy-benign,reentrancy-events
    function depositWithPermit(
        uint256 amount,
        bool isBond,
        uint256 deadline,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) external {
        try IERC20Permit(address(TOKEN)).permit(
            msg.sender, address(this), amount, deadline, v, r, s
        ) {} catch {}
        _deposit(amount, isBond);
    }

    /// @notice The same, as a transfer that the wallet signed (EIP-3009) and anybody may send.
    /// @param nonce Even: to buy with. Odd: a bond. So only the signer says which.
    /// @dev What arrives is known after the call alone; the guard is shut meanwhile.
    // slither-disable-next-line reentrancy-no-eth,reentrancy-benign
    function depositWithAuthorization(
        address from,
        uint256 amount,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external nonReentrant working {
        uint24 account = _openAccount(from);
        uint256 before = TOKEN.balanceOf(address(this));
        IERC3009(address(TOKEN)).receiveWithAuthorization(
            from, address(this), amount, validAfter, validBefore, nonce, signature
        );
        _credit(account, from, _arrived(before), uint256(nonce) & 1 == 1);
    }

    /// @notice Put money behind the settler's word. Anybody may; it is not theirs any more.
    function addSettlerBond(uint256 amount) external nonReentrant {
        uint256 before = TOKEN.balanceOf(address(this));
        TOKEN.safeTransferFrom(msg.sender, address(this), amount);
        uint256 arrived = _arrived(before);
        _addSettlerBond(arrived);
        emit SettlerBondAdded(arrived);
    }

    // --- exits: nothing here can be paused, and none of it needs the settler -----------------

    /// @notice Announce that you take your free money out yourself, without the settler.
    /// @dev Until exitAt the settler may still lock what was traded before (else asking for an
    /// exit would be a way out of a bad trade); from then on it may not.
    function requestExit() external {
        uint24 account = _accountOf(msg.sender);
        uint256 slot = _slots[account];
        if (_exitAt(slot) != 0) revert ExitPending(uint40(_exitAt(slot)));
        uint40 exitAt = uint40(block.timestamp + EXIT_DELAY);
        _slots[account] = slot | uint256(exitAt) << 192;
        emit ExitRequested(_nextExit(), account, exitAt);
    }

    /// @notice Go on trading after all.
    function cancelExit() external {
        uint24 account = _accountOf(msg.sender);
        uint256 slot = _slots[account];
        if (_exitAt(slot) == 0) revert NoExitPending();
        _slots[account] = uint192(slot);
        emit ExitCancelled(_nextExit(), account);
    }

    /// @notice Take all free and matured money out, once the delay is over.
    function finishExit() external nonReentrant {
        uint24 account = _accountOf(msg.sender);
        uint256 exitAt = _exitAt(_slots[account]);
        if (exitAt == 0) revert NoExitPending();
        if (block.timestamp < exitAt) revert ExitPending(uint40(exitAt));
        _payOut(account);
    }

    /// @notice Take all free and matured money out of a frozen vault, at once and repeatedly.
    function escape() external nonReentrant {
        if (!_counters.frozen) revert NotFrozen();
        _payOut(_accountOf(msg.sender));
    }

    /// @notice Ask for your bond. What you sell from a day later on is not backed, and void.
    function requestBond() external {
        uint24 account = _accountOf(msg.sender);
        uint32 bondAt = uint32(block.timestamp + BOND_DELAY);
        _earnings[account].bondAt = bondAt;
        emit BondRequested(account, bondAt);
    }

    /// @notice Take your bond, once the delay is over.
    function finishBond() external nonReentrant {
        uint24 account = _accountOf(msg.sender);
        uint256 bondAt = _earnings[account].bondAt;
        uint96 amount = _holders[account].bond;
        if (bondAt == 0 || amount == 0) revert NothingToTake();
        if (block.timestamp < bondAt) revert TooEarly(bondAt);
        _earnings[account].bondAt = 0;
        _holders[account].bond = 0;
        emit BondTaken(account, amount);
        TOKEN.safeTransfer(msg.sender, amount);
    }

    /// @notice Take what your challenges have brought.
    function takeOwed() external nonReentrant {
        uint256 amount = owed[msg.sender];
        if (amount == 0) revert NothingToTake();
        owed[msg.sender] = 0;
        emit OwedTaken(msg.sender, amount);
        TOKEN.safeTransfer(msg.sender, amount);
    }

    /// @notice Stop the exchange for good because its settler has been silent for too long. Then
    /// everybody takes their free money by escape, and closes their leases by claim.
    function freeze() external {
        Counters storage counters = _counters;
        if (counters.frozen) revert IsFrozen();
        uint256 from = counters.lastHeard + SILENCE;
        if (block.timestamp < from) revert TooEarly(from);
        counters.frozen = true;
        counters.lastHeard = uint40(block.timestamp);
        emit Frozen(uint40(block.timestamp));
    }

    // --- wallets: orders and keys ------------------------------------------------------------

    /// @notice Cancel every order of yours with a lower number, should the exchange not do so.
    /// @dev A fill of one in a batch posted GRACE later or more is void. Before that it may be one
    /// that was matched before the cancellation.
    function cancelBelow(uint32 below) external {
        uint24 account = _accountOf(msg.sender);
        Cancellation memory c = _cancellations[account];
        if (below <= c.nextBelow) revert NotBelow(c.nextBelow);
        if (block.timestamp < c.nextSince) revert TooEarly(c.nextSince);
        uint40 since = uint40(block.timestamp + GRACE);
        _cancellations[account] = Cancellation(c.nextBelow, c.nextSince, below, since);
        emit CancelledBelow(account, below, since);
    }

    /// @notice Let a key sign orders for your wallet. A wallet that is a contract needs this;
    /// others may sign a SessionKey instead. A key that was taken back is not given again.
    function authoriseKey(address key, uint64 validUntil) external {
        SessionKey storage slot = sessionKeys[msg.sender][key];
        if (slot.revokedAt != 0) revert KeyIsRevoked(key);
        // Never less than before: fills that rely on it may still be asked about.
        if (validUntil < slot.validUntil) revert TooEarly(slot.validUntil);
        slot.validUntil = validUntil;
        emit KeyAuthorised(msg.sender, key, validUntil);
    }

    /// @notice Take a key back, for good. Orders it signed count in batches until GRACE from now.
    function revokeKey(address key) external {
        SessionKey storage slot = sessionKeys[msg.sender][key];
        if (slot.revokedAt != 0) revert KeyIsRevoked(key);
        uint64 revokedAt = uint64(block.timestamp + GRACE);
        slot.revokedAt = revokedAt;
        emit KeyRevoked(msg.sender, key, revokedAt);
    }

    /// @notice Make an account's matured earnings free. Anybody may: it stays the account's.
    function collect(uint24 account) external {
        if (account == 0 || _collect(account) == 0) revert NothingToTake();
    }

    // --- roles -------------------------------------------------------------------------------

    /// @notice Pay an account's owner out of its free money. There is no other recipient.
    /// @param id Above every id used before.
    function withdraw(uint64 id, uint24 account, uint96 amount)
        external
        onlyRole(SETTLER_ROLE)
        nonReentrant
    {
        Counters storage counters = _counters;
        if (counters.frozen) revert IsFrozen();
        if (id <= counters.lastWithdrawal) {
            revert WithdrawalOutOfOrder(counters.lastWithdrawal, id);
        }
        if (amount == 0) revert ZeroAmount();
        address owner = _holders[account].owner;
        if (owner == address(0)) revert UnknownAccount(account);
        uint256 slot = _slots[account];
        if (uint96(slot) < amount) revert InsufficientFree(account, uint96(slot), amount);
        counters.lastWithdrawal = id;
        counters.lastHeard = uint40(block.timestamp);
        _slots[account] = slot - amount;
        emit Withdrawn(id, account, owner, amount);
        // An owner that the token refuses is answered by account, so that others need not wait.
        if (!TOKEN.trySafeTransfer(owner, amount)) revert TransferRefused(account);
    }

    /// @notice Say that the exchange is there, when there is nothing to settle.
    function heartbeat() external onlyRole(SETTLER_ROLE) {
        if (_counters.frozen) revert IsFrozen();
        _counters.lastHeard = uint40(block.timestamp);
    }

    /// @notice Stop deposits, settling and releasing, or go on. Nobody's way out is stopped, and
    /// a pause is no sign of the settler: it ends in a freeze.
    function setPaused(bool paused) external onlyRole(PAUSER_ROLE) {
        _counters.paused = paused;
        emit Paused(paused);
    }

    /// @notice Ask for a part of the settler's bond; each request replaces the one before.
    function requestSettlerBond(uint64 amount) external onlyRole(DEFAULT_ADMIN_ROLE) {
        uint40 due = uint40(block.timestamp + SETTLER_BOND_DELAY);
        bondRequest = BondRequest(amount, due);
        emit SettlerBondRequested(amount, due);
    }

    /// @notice Take it, as far as it is still there.
    function finishSettlerBond(address to) external onlyRole(DEFAULT_ADMIN_ROLE) nonReentrant {
        BondRequest memory request = bondRequest;
        if (request.due == 0) revert NothingToTake();
        if (block.timestamp < request.due) revert TooEarly(request.due);
        delete bondRequest;
        TOKEN.safeTransfer(to, _takeSettlerBond(request.amount));
    }

    /// @notice Take the exchange's matured fees.
    function takeFees(address to) external onlyRole(DEFAULT_ADMIN_ROLE) nonReentrant {
        Earnings memory e = _rolled(0);
        uint64 amount = e.matured;
        if (amount == 0) revert NothingToTake();
        e.matured = 0;
        _earnings[0] = e;
        emit FeesTaken(to, amount);
        TOKEN.safeTransfer(to, amount);
    }

    // --- reads -------------------------------------------------------------------------------

    /// @notice Accounts first, first + 1, ... at most count of them, as far as there are any.
    /// Account 0 is the exchange.
    function accountsFrom(uint24 first, uint24 count)
        external
        view
        returns (AccountView[] memory views)
    {
        uint256 end = uint256(_counters.accounts) + 1;
        if (first >= end) return views;
        if (end > uint256(first) + count) end = uint256(first) + count;
        views = new AccountView[](end - first);
        for (uint256 i = 0; i < views.length; ++i) {
            uint256 account = first + i;
            uint256 slot = _slots[account];
            Holder memory h = _holders[account];
            Earnings memory e = _rolled(account);
            views[i] = AccountView({
                owner: h.owner,
                free: uint96(slot),
                locked: uint96(slot >> 96),
                bond: h.bond,
                matured: e.matured,
                pending: e.previous + e.current,
                exitAt: uint40(_exitAt(slot)),
                bondAt: e.bondAt
            });
        }
    }

    /// @notice The counters and the vault's tokens, all of one block.
    function state()
        external
        view
        returns (Counters memory counters, Numbers memory numbers, uint256 balance)
    {
        return (_counters, _numbers, TOKEN.balanceOf(address(this)));
    }

    /// @notice The first 27 bytes of a batch's root, and when it was posted; zeros if it was not.
    function batch(uint48 id) external view returns (bytes27 root, uint40 postedAt) {
        return (bytes27(bytes32(_batches[id])), uint40(_batches[id]));
    }

    /// @notice What is known of a lease besides its fill.
    function lease(uint48 id, uint16 index)
        external
        view
        returns (bool isClosed, Notice memory notice)
    {
        return (_isClosed(id, index), _notices[uint256(id) << 16 | index]);
    }

    // --- inside: settling --------------------------------------------------------------------

    /// @dev price * qty is below 2^56 and the fee below that, and there are at most 2^16 fills:
    /// no sum overflows. Each fill's fee is rounded down, in favour of the buyer. The inner loop
    /// goes through one run of a buyer; `isBad` says that it ended at a seller who is nobody.
    function _lockFills(bytes calldata fills, uint256 count, uint256 accounts)
        private
        returns (uint256 leaves, uint256 total)
    {
        assembly ("memory-safe") {
            leaves := mload(0x40)
            mstore(0x40, add(leaves, shl(5, add(count, 1)))) // one more: see Fills.reduce
        }
        uint256 buyer = type(uint256).max; // nobody yet
        uint256 debt = 0;
        uint256 i = 0;
        while (true) {
            uint256 word;
            bool isBad = false;
            assembly ("memory-safe") {
                let from := add(fills.offset, mul(i, 30))
                let to := add(leaves, shl(5, i))
                for {} lt(i, count) {} {
                    word := shr(16, calldataload(from))
                    isBad := iszero(lt(sub(and(shr(192, word), 0xffffff), 1), accounts))
                    if or(isBad, xor(shr(216, word), buyer)) { break }
                    mstore(0x00, or(shl(240, i), word))
                    mstore(to, keccak256(0x00, 0x20))
                    let amount := and(shr(168, word), 0xffffff) // the price
                    amount := mul(amount, and(shr(136, word), 0xffffffff))
                    let fee := div(mul(amount, and(shr(16, word), 0xffff)), 1000000)
                    debt := add(debt, add(amount, fee))
                    i := add(i, 1)
                    from := add(from, 30)
                    to := add(to, 0x20)
                }
            }
            if (isBad) revert UnknownAccount((word >> 192) & 0xffffff);
            if (debt != 0) _lock(buyer, debt);
            unchecked {
                total += debt;
            }
            if (i == count) return (leaves, total);
            debt = 0;
            buyer = word >> 216;
            if (buyer == 0 || buyer > accounts) revert UnknownAccount(buyer);
        }
    }

    function _lock(uint256 buyer, uint256 debt) private {
        uint256 slot = _slots[buyer];
        uint256 exitAt = _exitAt(slot);
        if (exitAt != 0 && block.timestamp >= exitAt) revert AccountExiting(buyer);
        if (uint96(slot) < debt) revert InsufficientFree(buyer, uint96(slot), debt);
        unchecked {
            _slots[buyer] = slot - debt + (debt << 96);
        }
    }

    // --- inside: releasing -------------------------------------------------------------------

    /// @dev Sums by account in memory, two words each: taken from locked, given. What is taken and
    /// given to nobody is the exchange's.
    function _pay(uint256 batchId, bytes calldata accounts, bytes calldata records)
        private
        returns (uint256 total)
    {
        uint256 places = accounts.length / Releases.ACCOUNT_BYTES;
        uint256[] memory sums = new uint256[](2 * Releases.ACCOUNTS_MAX);
        _sumRecords(batchId, records, sums);
        uint256 stray = 0; // of places that are not in the list
        assembly ("memory-safe") {
            let spot := add(add(sums, 0x20), shl(6, places))
            let behind := add(add(sums, 0x20), shl(5, mload(sums)))
            for {} lt(spot, behind) { spot := add(spot, 0x20) } { stray := or(stray, mload(spot)) }
        }
        if (stray != 0) revert UnknownAccount(0);
        uint256 known = _counters.accounts;
        uint256 given = 0;
        for (uint256 i = 0; i < places; ++i) {
            uint256 account = Releases.accountAt(accounts, i);
            if (account == 0 || account > known) revert UnknownAccount(account);
            (uint256 taken, uint256 earned) = (sums[2 * i], sums[2 * i + 1]);
            if (taken != 0) _takeLocked(account, taken);
            if (earned != 0) _earn(account, earned);
            unchecked {
                total += taken;
                given += earned;
            }
        }
        if (total != given) _earn(0, total - given);
    }

    /// @dev Amounts are below 2^49, and there are fewer than 2^16: no sum overflows. There is room
    /// for every place that a byte can name. A page is 256 leases' bits; `twice` collects those
    /// that were set before.
    function _sumRecords(uint256 batchId, bytes calldata records, uint256[] memory sums) private {
        mapping(uint256 => uint256) storage closed = _closed[batchId];
        uint256 page = 0;
        uint256 twice = 0;
        // A bit is one, shifted: the order of the operands is meant.
        // slither-disable-start incorrect-shift
        assembly ("memory-safe") {
            mstore(0x20, closed.slot)
            let base := add(sums, 0x20)
            let slot := 0
            let bits := 0
            page := not(0)
            let from := records.offset
            let behind := add(from, records.length)
            for {} lt(from, behind) { from := add(from, 21) } {
                let word := calldataload(from) // a record and what follows it
                if xor(byte(0, word), page) {
                    if twice { break }
                    if bits { sstore(slot, bits) }
                    page := byte(0, word)
                    mstore(0x00, page)
                    slot := keccak256(0x00, 0x40)
                    bits := sload(slot)
                }
                let spot := shl(byte(1, word), 1)
                twice := or(twice, and(bits, spot))
                bits := or(bits, spot)
                let amount := and(shr(176, word), 0xffffffffffff) // to the seller
                spot := add(add(base, 0x20), shl(6, byte(3, word)))
                mstore(spot, add(mload(spot), amount))
                spot := add(base, shl(6, byte(2, word)))
                let back := and(shr(128, word), 0xffffffffffff)
                if back {
                    mstore(add(spot, 0x20), add(mload(add(spot, 0x20)), back))
                    amount := add(amount, back)
                }
                amount := add(amount, and(shr(88, word), 0xffffffffff)) // to the exchange
                mstore(spot, add(mload(spot), amount))
            }
            sstore(slot, bits)
        }
        // slither-disable-end incorrect-shift
        if (twice != 0) revert LeaseClosed(batchId, (page << 8) | Math.log2(twice));
    }

    function _chunksRoot(bytes calldata records) private pure returns (bytes32) {
        uint256 chunks = (records.length + Releases.CHUNK_BYTES - 1) / Releases.CHUNK_BYTES;
        uint256 words;
        assembly ("memory-safe") {
            words := mload(0x40)
            let scratch := add(words, shl(5, add(chunks, 1))) // one more: see Fills.reduce
            mstore(0x40, add(scratch, 672))
            let left := records.length
            for { let i := 0 } lt(i, chunks) { i := add(i, 1) } {
                let size := 672
                if lt(left, size) { size := left }
                calldatacopy(scratch, add(records.offset, mul(i, 672)), size)
                mstore(add(words, shl(5, i)), keccak256(scratch, size))
                left := sub(left, size)
            }
        }
        return Fills.reduce(words, chunks);
    }

    function _stamped(bytes32 hash) private view returns (uint256) {
        return (uint256(hash) >> 40) << 40 | uint40(block.timestamp);
    }

    // --- inside: accounts --------------------------------------------------------------------

    function _collect(uint24 account) private returns (uint64 amount) {
        Earnings memory e = _rolled(account);
        amount = e.matured;
        if (amount == 0) return 0;
        e.matured = 0;
        _earnings[account] = e;
        _addFree(account, amount);
        emit Collected(account, amount);
    }

    function _payOut(uint24 account) private {
        _collect(account);
        uint256 slot = _slots[account];
        uint96 amount = uint96(slot);
        _slots[account] = (slot & (uint256(type(uint96).max) << 96));
        emit Exited(_nextExit(), account, amount);
        TOKEN.safeTransfer(msg.sender, amount);
    }

    function _deposit(uint256 amount, bool isBond) private nonReentrant working {
        uint24 account = _openAccount(msg.sender);
        uint256 before = TOKEN.balanceOf(address(this));
        TOKEN.safeTransferFrom(msg.sender, address(this), amount);
        _credit(account, msg.sender, _arrived(before), isBond);
    }

    function _credit(uint24 account, address owner, uint96 amount, bool isBond) private {
        if (isBond) _holders[account].bond += amount;
        else _addFree(account, amount);
        emit Deposited(++_numbers.deposits, account, owner, amount, isBond);
    }

    function _openAccount(address owner) private returns (uint24 account) {
        account = indexOf[owner];
        if (account != 0) {
            if (_exitAt(_slots[account]) != 0) revert AccountExiting(account);
            return account;
        }
        account = ++_counters.accounts;
        if (account > ACCOUNTS_MAX) revert VaultFull();
        indexOf[owner] = account;
        _holders[account].owner = owner;
        emit AccountOpened(account, owner);
    }

    /// @dev Wraps rather than stand in the way of an exit.
    function _nextExit() private returns (uint32 number) {
        unchecked {
            number = ++_numbers.exits;
        }
    }
}
