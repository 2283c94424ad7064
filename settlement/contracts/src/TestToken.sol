// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {IERC3009} from "./IERC3009.sol";

/// @title A token that does what real ones have been seen to do to escrows. For tests alone.
/// @notice Approvals and transfers by signature, a fee on transfers, a blacklist, a pause, `false`
/// in place of a revert, a call back while it transfers; anybody sets them and mints.
contract TestToken is ERC20, ERC20Permit, IERC3009 {
    bytes32 private constant RECEIVE_TYPEHASH = keccak256(
        "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,"
        "uint256 validBefore,bytes32 nonce)"
    );

    mapping(address from => mapping(bytes32 nonce => bool)) public authorizationState;
    uint256 public feePpm;
    bool public paused;
    bool public answersFalse;
    address public target;
    bytes public callback;
    mapping(address account => bool) public blacklisted;

    error Blacklisted(address account);
    error TokenPaused();

    error NotAuthorized();

    constructor() ERC20("Test Token", "TEST") ERC20Permit("Test Token") {}

    /// @inheritdoc IERC3009
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external {
        bytes32 hash = keccak256(
            abi.encode(RECEIVE_TYPEHASH, from, to, value, validAfter, validBefore, nonce)
        );
        if (
            to != msg.sender || authorizationState[from][nonce] || block.timestamp <= validAfter
                || block.timestamp >= validBefore
                || ECDSA.recover(_hashTypedDataV4(hash), signature) != from
        ) revert NotAuthorized();
        authorizationState[from][nonce] = true;
        _transfer(from, to, value);
    }

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function setFee(uint256 ppm) external {
        feePpm = ppm;
    }

    function setPaused(bool on) external {
        paused = on;
    }

    function setAnswersFalse(bool on) external {
        answersFalse = on;
    }

    function setBlacklisted(address account, bool on) external {
        blacklisted[account] = on;
    }

    /// @notice What to call at whom during each transfer; nothing if the call is empty.
    // slither-disable-next-line missing-zero-check (nothing to protect)
    function setCallback(address called, bytes calldata data) external {
        target = called;
        callback = data;
    }

    function decimals() public pure override returns (uint8) {
        return 6;
    }

    function transfer(address to, uint256 amount) public override returns (bool) {
        return !answersFalse && super.transfer(to, amount);
    }

    function transferFrom(address from, address to, uint256 amount)
        public
        override
        returns (bool)
    {
        return !answersFalse && super.transferFrom(from, to, amount);
    }

    function _update(address from, address to, uint256 amount) internal override {
        if (paused) revert TokenPaused();
        if (blacklisted[from]) revert Blacklisted(from);
        if (blacklisted[to]) revert Blacklisted(to);
        if (callback.length != 0) {
            // slither-disable-next-line low-level-calls (whatever a test wants called)
            (bool done, bytes memory reason) = target.call(callback);
            if (!done) {
                assembly ("memory-safe") {
                    revert(add(reason, 0x20), mload(reason))
                }
            }
        }
        uint256 fee = from == address(0) || to == address(0) ? 0 : amount * feePpm / 1_000_000;
        super._update(from, to, amount - fee);
        if (fee != 0) super._update(from, address(0), fee);
    }
}
