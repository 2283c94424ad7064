// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {
    IERC20Metadata
} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Metadata.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Accounts} from "./Accounts.sol";
import {Fills} from "./Fills.sol";
import {Leases} from "./Leases.sol";
import {Orders} from "./Orders.sol";
import {Releases} from "./Releases.sol";

/// @title The vault's other half: what parties and watchers say of single leases.
/// @notice Called at the vault's address. Nothing here can be paused, and but for slash none of it
/// needs anybody's leave.
/// @dev The vault creates it and runs it on its own storage; called directly, it has no money and
/// no batches, and does nothing.
contract Disputes is Leases {
    using SafeERC20 for IERC20;
    using Fills for Fills.Fill;

    uint8 private constant SCOPE_TRADE = 2;

    event ReleaseUndone(uint64 indexed id, uint256 indexed record, uint256 cost);
    event Challenged(
        uint48 indexed batch, uint16 indexed index, uint256 bought, uint256 sold, address challenger
    );
    event Answered(uint48 indexed batch, uint16 indexed index, uint256 bought, uint256 sold);
    event Voided(uint48 indexed batch, uint16 indexed index, uint256 cost);
    event Stopped(uint48 indexed batch, uint16 indexed index, uint40 time);
    event NonDelivery(uint48 indexed batch, uint16 indexed index, uint40 time);
    event Claimed(
        uint48 indexed batch, uint16 indexed index, uint256 toSeller, uint256 toBuyer
    );
    event Slashed(
        uint48 indexed batch, uint16 indexed index, uint24 indexed seller, uint256 amount
    );

    error WrongProof(uint256 batch, uint256 index);
    error WindowOver(uint256 since);
    error AlreadyAsked();
    error NoSuchDispute();
    error EvidenceOutOfOrder(uint256 place);
    error NotEvidence(uint256 place);
    error NotSigned(bool isBuy);
    error OutsideOrder(bool isBuy);
    error KeyNotAllowed(bool isBuy);
    error NothingWrong();
    error NotTheBuyer();
    error NotReported();
    error SlashTooHigh(uint256 most);

    constructor(IERC20Metadata token, uint64 settlerBondMin) Accounts(token, settlerBondMin) {}

    // --- buyers ------------------------------------------------------------------------------

    /// @notice Pay for nothing that is delivered from now on.
    function stop(Place calldata place) external {
        (Fills.Fill memory fill, Notice storage notice) = _ownLease(place);
        uint256 end = fill.endOf(_postedAt(place.batch));
        if (notice.stoppedAt != 0) revert AlreadyAsked();
        if (block.timestamp >= end) revert WindowOver(end);
        notice.stoppedAt = uint40(block.timestamp);
        emit Stopped(place.batch, place.index, uint40(block.timestamp));
    }

    /// @notice Say that the seller does not deliver. What is due for before is for the settler to
    /// meter; what is due for later is not paid.
    function reportNonDelivery(Place calldata place) external {
        (Fills.Fill memory fill, Notice storage notice) = _ownLease(place);
        // slither-disable-next-line unused-return (the end is not asked for)
        (uint256 start,) = fill.span(_postedAt(place.batch));
        if (notice.reportedAt != 0) revert AlreadyAsked();
        if (block.timestamp < start) revert TooEarly(start);
        notice.reportedAt = uint40(block.timestamp);
        emit NonDelivery(place.batch, place.index, uint40(block.timestamp));
    }

    // --- disputes ----------------------------------------------------------------------------

    /// @notice Ask for the signed orders behind a fill, at the price of STAKE.
    /// @param earlier Fills settled before it that count towards the same orders, ascending: both
    /// orders must cover them all. None of them void.
    function challenge(Place calldata place, Place[] calldata earlier) external nonReentrant {
        Fills.Fill memory fill = _fillAt(place);
        uint256 until = _postedAt(place.batch) + CHALLENGE_WINDOW;
        if (block.timestamp >= until) revert WindowOver(until);
        Notice storage notice = _notices[_lease(place)];
        if (notice.isVoid) revert LeaseClosed(place.batch, place.index);
        (uint256 bought, uint256 sold) = _sums(place, fill, earlier);
        Dispute storage dispute = _disputes[_disputeId(place, bought, sold)];
        if (dispute.challenger != address(0)) revert AlreadyAsked();
        dispute.challenger = msg.sender;
        dispute.deadline = uint40(block.timestamp + ANSWER_WINDOW);
        notice.disputes += 1;
        _setClosed(place.batch, place.index, true);
        emit Challenged(place.batch, place.index, bought, sold, msg.sender);
        uint256 before = TOKEN.balanceOf(address(this));
        TOKEN.safeTransferFrom(msg.sender, address(this), STAKE);
        if (_arrived(before) != STAKE) revert DepositOutOfRange(STAKE);
    }

    /// @notice Show the orders that were asked for. Anybody may; the stake is the settler's bond.
    /// @param bought What all fills of the buyer's order come to, as asked for.
    /// @param sold The same of the seller's order.
    function answer(
        Place calldata place,
        uint256 bought,
        uint256 sold,
        Orders.Signed calldata buy,
        Orders.Signed calldata sell
    ) external {
        Fills.Fill memory fill = _fillAt(place);
        Dispute storage dispute = _openDispute(place, bought, sold);
        Notice storage notice = _notices[_lease(place)];
        if (notice.isVoid) revert LeaseClosed(place.batch, place.index);
        uint256 postedAt = _postedAt(place.batch);
        bytes32 domain = _domainSeparatorV4();
        _requireOrder(buy, fill, true, bought, postedAt, domain);
        _requireOrder(sell, fill, false, sold, postedAt, domain);
        dispute.isOver = true;
        uint16 open = notice.disputes - 1;
        notice.disputes = open;
        if (open == 0) _setClosed(place.batch, place.index, false);
        emit Answered(place.batch, place.index, bought, sold);
        _addSettlerBond(STAKE);
    }

    /// @notice End a dispute that nobody has answered in time: the fill is void, its buyer's money
    /// free again, the stake back, and the settler pays.
    function voidUnanswered(Place calldata place, uint256 bought, uint256 sold) external {
        Fills.Fill memory fill = _fillAt(place);
        Dispute storage dispute = _openDispute(place, bought, sold);
        if (block.timestamp < dispute.deadline) revert WindowOpen(dispute.deadline);
        dispute.isOver = true;
        Notice storage notice = _notices[_lease(place)];
        notice.disputes -= 1;
        owed[dispute.challenger] += STAKE;
        if (!notice.isVoid) _void(place, fill, notice, dispute.challenger);
    }

    /// @notice Void a fill that is wrong by what the vault knows: an order cancelled before, a
    /// seller without a bond or gone, delivery too far off.
    function voidFlawed(Place calldata place) external {
        Fills.Fill memory fill = _fillAt(place);
        uint256 postedAt = _postedAt(place.batch);
        if (block.timestamp >= postedAt + CHALLENGE_WINDOW) {
            revert WindowOver(postedAt + CHALLENGE_WINDOW);
        }
        Notice storage notice = _notices[_lease(place)];
        if (notice.isVoid) revert LeaseClosed(place.batch, place.index);
        if (!_isFlawed(fill, postedAt)) revert NothingWrong();
        _setClosed(place.batch, place.index, true);
        _void(place, fill, notice, msg.sender);
    }

    /// @notice Undo a record of a release that contradicts its lease, and make the settler pay.
    /// @param place The lease; or, for a record of a lease that there is not, the batch's last.
    function undoRelease(Releases.Proof calldata proof, Place calldata place) external {
        uint256 releasedAt = uint40(_releases[proof.release]);
        Releases.Record memory record = _recordOf(proof);
        bool isOfThisEpoch = releasedAt / EPOCH == block.timestamp / EPOCH;
        if (!isOfThisEpoch && releasedAt / EPOCH + 1 != block.timestamp / EPOCH) {
            revert WindowOver((releasedAt / EPOCH + 2) * EPOCH);
        }
        Fills.Fill memory fill = _fillAt(place);
        if (place.batch != proof.batch) revert WrongProof(place.batch, place.index);
        if (place.index == record.index) {
            Notice memory notice = _notices[_lease(place)];
            if (_isLawful(record, fill, notice, _postedAt(place.batch), releasedAt)) {
                revert NothingWrong();
            }
        } else if (place.index > record.index || !_isLast(place)) {
            revert WrongProof(place.batch, place.index);
        }
        _undo(proof, record, isOfThisEpoch);
        _punish(msg.sender, record.buyer, record.seller);
    }

    /// @notice Close a lease that was not released in time, or whose exchange is frozen. Anybody
    /// may: what each party gets follows from the fill and from what its buyer said.
    function claim(Place calldata place) external {
        Fills.Fill memory fill = _fillAt(place);
        Counters memory c = _counters;
        uint256 postedAt = _postedAt(place.batch);
        uint256 end = fill.endOf(postedAt);
        uint256 from = postedAt + CHALLENGE_WINDOW;
        if (!c.frozen && end + CLAIM_DELAY > from) from = end + CLAIM_DELAY;
        if (block.timestamp < from) revert TooEarly(from);
        if (_isClosed(place.batch, place.index)) revert LeaseClosed(place.batch, place.index);
        Notice memory notice = _notices[_lease(place)];
        uint256 until = _earlier(notice.stoppedAt, notice.reportedAt);
        if (c.frozen) until = _earlier(until, c.lastHeard);
        uint256 paid = until == 0 ? fill.notional() : fill.due(postedAt, until);
        (uint256 toSeller, uint256 toBuyer, uint256 fees) = fill.divide(paid);
        _setClosed(place.batch, place.index, true);
        emit Claimed(place.batch, place.index, toSeller, toBuyer);
        _takeLocked(fill.buyer, fill.cost());
        _addFree(fill.buyer, toBuyer);
        _addFree(fill.seller, toSeller);
        _earn(0, fees);
    }

    /// @notice Take from a seller's bond, for the buyer of a lease reported as not delivered.
    function slash(Place calldata place, uint256 amount) external onlyRole(ARBITER_ROLE) {
        Fills.Fill memory fill = _fillAt(place);
        Notice storage notice = _notices[_lease(place)];
        if (notice.reportedAt == 0) revert NotReported();
        if (notice.isSlashed || notice.isVoid) revert LeaseClosed(place.batch, place.index);
        uint256 postedAt = _postedAt(place.batch);
        uint256 end = fill.endOf(postedAt);
        if (block.timestamp >= end + SLASH_WINDOW) revert WindowOver(end + SLASH_WINDOW);
        uint256 most = SLASH_FACTOR * (fill.notional() - fill.due(postedAt, notice.reportedAt));
        if (amount > most) revert SlashTooHigh(most);
        notice.isSlashed = true;
        Holder storage holder = _holders[fill.seller];
        uint96 taken = amount < holder.bond ? uint96(amount) : holder.bond;
        holder.bond -= taken;
        emit Slashed(place.batch, place.index, uint24(fill.seller), taken);
        _addFree(fill.buyer, taken);
    }

    // --- inside: releases --------------------------------------------------------------------

    /// @dev Whether a record says what its lease and its buyer say, at the time of the release.
    function _isLawful(
        Releases.Record memory record,
        Fills.Fill memory fill,
        Notice memory notice,
        uint256 postedAt,
        uint256 time
    ) private pure returns (bool) {
        if (record.buyer != fill.buyer || record.seller != fill.seller) return false;
        uint256 cost = fill.cost();
        if (record.cost != cost || record.toBuyer > cost) return false;
        // The only amount that may have been paid if so much went back; at most the notional.
        uint256 paid = Math.ceilDiv((cost - record.toBuyer) * Fills.PPM, Fills.PPM + fill.buyerFee);
        (uint256 toSeller, uint256 toBuyer, uint256 fees) = fill.divide(paid);
        if (record.toSeller != toSeller || record.toBuyer != toBuyer) return false;
        assert(toSeller + toBuyer + fees == cost);
        return _isDue(paid, fill, notice, postedAt, time);
    }

    /// @dev Unless the buyer has reported, exactly what is due is paid, and not before the end.
    /// Spot hours are metered by the settler alone once the buyer has stopped them.
    function _isDue(
        uint256 paid,
        Fills.Fill memory fill,
        Notice memory notice,
        uint256 postedAt,
        uint256 time
    ) private pure returns (bool) {
        uint256 until = _earlier(notice.stoppedAt, time);
        if (fill.isSpot()) {
            return notice.reportedAt != 0 || notice.stoppedAt != 0 || paid == fill.notional();
        }
        uint256 due = fill.due(postedAt, until);
        if (notice.reportedAt != 0) return paid <= due;
        uint256 end = fill.endOf(postedAt);
        return paid == due && (notice.stoppedAt != 0 || time >= end);
    }

    function _recordOf(Releases.Proof calldata proof)
        private
        view
        returns (Releases.Record memory)
    {
        bytes32 root = Fills.climb(keccak256(proof.chunk), proof.chunkIndex, proof.path);
        bytes32 commitment = Releases.commitment(proof.batch, proof.accounts, root);
        uint256 kept = _releases[proof.release];
        if (
            kept == 0 || kept >> 40 != uint256(commitment) >> 40
                || (proof.place + 1) * Releases.BYTES > proof.chunk.length
        ) revert WrongProof(proof.release, proof.chunkIndex);
        return Releases.read(proof.chunk, proof.place, proof.accounts);
    }

    function _undo(
        Releases.Proof calldata proof,
        Releases.Record memory record,
        bool isOfThisEpoch
    ) private {
        uint256 number = proof.chunkIndex * Releases.CHUNK + proof.place;
        uint256 bit = 1 << (number & 0xff);
        uint256 bits = _undone[proof.release][number >> 8];
        if (bits & bit != 0) revert AlreadyAsked();
        _undone[proof.release][number >> 8] = bits | bit;
        _setClosed(proof.batch, record.index, false);
        emit ReleaseUndone(proof.release, number, record.cost);
        _unearn(record.seller, record.toSeller, isOfThisEpoch);
        _unearn(record.buyer, record.toBuyer, isOfThisEpoch);
        _unearn(0, record.cost - record.toSeller - record.toBuyer, isOfThisEpoch);
        _slots[record.buyer] += record.cost << 96;
    }

    // --- inside: disputes --------------------------------------------------------------------

    /// @dev What the fill and the earlier ones come to, of the buyer's order and of the seller's.
    function _sums(Place calldata place, Fills.Fill memory fill, Place[] calldata earlier)
        private
        view
        returns (uint256 bought, uint256 sold)
    {
        (bought, sold) = (fill.qty, fill.qty);
        uint256 last = 0;
        for (uint256 i = 0; i < earlier.length; ++i) {
            uint256 number = _lease(earlier[i]);
            if (number <= last || number >= _lease(place)) revert EvidenceOutOfOrder(i);
            last = number;
            // Asked about itself it still counts: else asking would be a way to hide it.
            if (_notices[number].isVoid) revert NotEvidence(i);
            Fills.Fill memory other = _fillAt(earlier[i]);
            if (other.series != fill.series || other.window != fill.window) revert NotEvidence(i);
            bool isBought = other.buyer == fill.buyer && other.buyerOrder == fill.buyerOrder;
            bool isSold = other.seller == fill.seller && other.sellerOrder == fill.sellerOrder;
            if (!isBought && !isSold) revert NotEvidence(i);
            if (isBought) bought += other.qty;
            if (isSold) sold += other.qty;
        }
    }

    /// @dev Reverts unless the party has signed an order that covers the fill.
    function _requireOrder(
        Orders.Signed calldata order,
        Fills.Fill memory fill,
        bool isBuy,
        uint256 filled,
        uint256 postedAt,
        bytes32 domain
    ) private view {
        Orders.Terms memory terms = Orders.Terms({
            account: isBuy ? fill.buyer : fill.seller,
            isBuy: isBuy,
            series: fill.series,
            window: fill.window,
            number: isBuy ? fill.buyerOrder : fill.sellerOrder
        });
        address key = Orders.signer(order, terms, domain);
        if (key == address(0)) revert NotSigned(isBuy);
        if (
            (isBuy ? fill.price > order.price : fill.price < order.price) || filled > order.qty
                || (isBuy ? fill.buyerFee : fill.sellerFee) > order.feeMax
                || postedAt > uint256(order.validUntil) + GRACE
        ) revert OutsideOrder(isBuy);
        address owner = _holders[terms.account].owner;
        if (key != owner && !_mayTrade(owner, key, order.authority, postedAt, domain)) {
            revert KeyNotAllowed(isBuy);
        }
    }

    /// @dev By what the wallet told the vault, or by what it signed; a key taken back never may.
    function _mayTrade(
        address owner,
        address key,
        Orders.Authority calldata authority,
        uint256 postedAt,
        bytes32 domain
    ) private view returns (bool) {
        SessionKey memory named = sessionKeys[owner][key];
        if (named.revokedAt != 0 && postedAt >= named.revokedAt) return false;
        if (postedAt <= uint256(named.validUntil) + GRACE && named.validUntil != 0) return true;
        return authority.key == key && authority.scopes & SCOPE_TRADE != 0
            && postedAt >= authority.validFrom
            && postedAt <= uint256(authority.validUntil) + GRACE
            && Orders.authoriser(authority, owner, domain) == owner;
    }

    function _isFlawed(Fills.Fill memory fill, uint256 postedAt) private view returns (bool) {
        if (_isCancelled(fill.buyer, fill.buyerOrder, postedAt)) return true;
        if (_isCancelled(fill.seller, fill.sellerOrder, postedAt)) return true;
        uint256 exitAt = _exitAt(_slots[fill.seller]);
        if (exitAt != 0 && postedAt >= exitAt) return true;
        uint256 bondAt = _earnings[fill.seller].bondAt;
        if (bondAt != 0 && postedAt + BOND_DELAY >= bondAt + GRACE) return true;
        uint256 end = fill.endOf(postedAt);
        return end > postedAt + HORIZON;
    }

    function _void(
        Place calldata place,
        Fills.Fill memory fill,
        Notice storage notice,
        address challenger
    ) private {
        notice.isVoid = true;
        uint256 cost = fill.cost();
        emit Voided(place.batch, place.index, cost);
        _unlock(fill.buyer, cost);
        _punish(challenger, fill.buyer, fill.seller);
    }

    /// @dev As far as the settler's bond goes.
    function _punish(address challenger, uint256 buyer, uint256 seller) private {
        uint256 amount = _takeSettlerBond(PENALTY);
        uint256 part = amount / 4;
        _addFree(buyer, part);
        _addFree(seller, part);
        owed[challenger] += amount - part - part;
    }

    // --- inside: places ----------------------------------------------------------------------

    function _lease(Place calldata place) private pure returns (uint256) {
        return uint256(place.batch) << 16 | place.index;
    }

    function _disputeId(Place calldata place, uint256 bought, uint256 sold)
        private
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(_lease(place), bought, sold));
    }

    function _openDispute(Place calldata place, uint256 bought, uint256 sold)
        private
        view
        returns (Dispute storage dispute)
    {
        dispute = _disputes[_disputeId(place, bought, sold)];
        if (dispute.challenger == address(0) || dispute.isOver) revert NoSuchDispute();
    }

    /// @dev The fill, if it is there. Reverts otherwise.
    function _fillAt(Place calldata place) private view returns (Fills.Fill memory) {
        bytes32 root = Fills.rootOf(place.index, place.fill, place.path);
        uint256 kept = _batches[place.batch];
        if (kept == 0 || kept >> 40 != uint256(root) >> 40) {
            revert WrongProof(place.batch, place.index);
        }
        return Fills.read(place.fill);
    }

    /// @dev Whether nothing is to the right of this place of a batch.
    function _isLast(Place calldata place) private pure returns (bool) {
        for (uint256 i = 0; i < place.path.length; ++i) {
            if ((place.index >> i) & 1 == 0 && place.path[i] != 0) return false;
        }
        return true;
    }

    /// @dev The caller's own lease, not closed, and what was said of it.
    function _ownLease(Place calldata place)
        private
        view
        returns (Fills.Fill memory fill, Notice storage notice)
    {
        fill = _fillAt(place);
        if (_holders[fill.buyer].owner != msg.sender) revert NotTheBuyer();
        notice = _notices[_lease(place)];
        bool isDisputed = notice.disputes != 0 && !notice.isVoid;
        if (!isDisputed && _isClosed(place.batch, place.index)) {
            revert LeaseClosed(place.batch, place.index);
        }
    }

    function _setClosed(uint256 batchId, uint256 index, bool closed) private {
        uint256 bit = 1 << (index & 0xff);
        uint256 bits = _closed[batchId][index >> 8];
        _closed[batchId][index >> 8] = closed ? bits | bit : bits & ~bit;
    }

    /// @dev Of two times, of which zero is never.
    function _earlier(uint256 a, uint256 b) private pure returns (uint256) {
        if (a == 0) return b;
        return b == 0 || a < b ? a : b;
    }
}
