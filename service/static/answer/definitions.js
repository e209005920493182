/* What the numbers of an answer mean, in the words of docs/answers.md. */

/** How strong a result or a group is, in words. */
export const STRENGTHS = { strong: "strong", weak: "weak", none: "not above chance" };

export const SCORE = "How much the document pushed the model towards (above 0) or away from (below 0) the completion: "
  + "how alike the training step on the document and the gradient of the completion are. All bars of the page have one scale.";
export const PERCENTILE = "The percentage of random documents of the index that score lower for this question.";
export const SHADES = "The darker a word, the more learning to predict it counts: the influence of a position is drawn on "
  + "the word that the position predicted. The words of a document add up to its score. All documents of the page have one scale.";
export const PROBABILITY = "The probability that the model gives to these words after the prompt, all tokens together: "
  + "e to the power of minus the loss.";
export const BEHAVIOUR_LOSS = "The mean over the questions of the behaviour of the cross-entropy of their completions: the lower, the "
  + "more the model behaves so. A score is the mean of the scores for the questions, less that for the control set.";
export const NOTICE = "The best result stands out no more than it would for a completion that no document states. "
  + "Every question has a best document, even one about something that no document mentions.";
export const VERIFICATION = "Each of these documents was unlearned for real, by one training step backwards, and all weights "
  + "were restored. A result that changes no more than random documents do was not shown to matter.";
export const RESCORED = "The best candidates ran through the model again and were scored by their whole gradients, "
  + "without the noise of the projection.";
export const STATES = "A document that states the completion has its words one after another. A document may say it "
  + "without having moved the model, and may have moved the model without saying it.";
export const INTERVAL = "The interval tells how far the projection's noise may have moved the score. A result is strong if it "
  + "stands out even so, weak if it may stand out, and none if random documents score as high.";
export const BACKGROUND = "How random documents of the index score for this question, and where the results stand. The "
  + "heights of the bars are logarithms, so that a single document is to be seen. A question that no document answers has results "
  + "at the edge of the bars, too.";
export const TOTALS = "The scores of all documents, not of the results alone, summed by their metadata. Scores within the noise of "
  + "random documents count as 0. Sums have both signs and grow with the number of documents. The line is the interval that the "
  + "projection's noise leaves.";
export const GROUP = "The service has folded the 1,000 best documents into groups. The card shows the best document of its group; "
  + "groups are in the order of the sums of their scores.";
export const FILTERS = "A click on a value asks again, for documents with this value alone.";
