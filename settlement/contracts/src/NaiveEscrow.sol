// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

/// @title One escrow for each fill, paid by a transfer: what the vault is measured against.
/// @notice For benchmarks alone.
contract NaiveEscrow {
    using SafeERC20 for IERC20;

    struct Deal {
        address buyer;
        uint96 amount;
        address seller;
        uint40 start;
        uint40 end;
        uint256 terms;
    }

    IERC20 public immutable TOKEN;
    address public immutable OPERATOR;
    mapping(uint256 id => Deal) public deals;

    event Opened(uint256 indexed id, address indexed buyer, address indexed seller, uint96 amount);
    event Released(uint256 indexed id);

    error NotTheOperator();
    error NoDeal(uint256 id);

    constructor(IERC20 token) {
        TOKEN = token;
        OPERATOR = msg.sender;
    }

    /// @notice Pull what the buyer pays, and remember for whom.
    function open(uint256 id, Deal calldata deal) external {
        if (msg.sender != OPERATOR) revert NotTheOperator();
        if (deals[id].buyer != address(0)) revert NoDeal(id);
        deals[id] = deal;
        emit Opened(id, deal.buyer, deal.seller, deal.amount);
        // The buyer has approved this contract for what the operator opens.
        // slither-disable-next-line arbitrary-send-erc20
        TOKEN.safeTransferFrom(deal.buyer, address(this), deal.amount);
    }

    /// @notice Pay the seller.
    function release(uint256 id) external {
        Deal memory deal = deals[id];
        if (msg.sender != OPERATOR) revert NotTheOperator();
        if (deal.buyer == address(0)) revert NoDeal(id);
        delete deals[id];
        emit Released(id);
        TOKEN.safeTransfer(deal.seller, deal.amount);
    }
}
